"""The pruning plan: which layers of a network are kept and which are removed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglp.errors import PlanError
from sglp.files import new_file
from sglp.layer import Layer, module_paths
from sglp.record import Architecture


@dataclass(frozen=True)
class Plan:
    """The names of the layers to keep and to remove, as `find_layers` gives them, in order of execution.

    Args:
        kept: names of the layers to keep.
        removed: names of the layers to remove.

    Raises:
        PlanError: a layer is named twice.
    """

    kept: tuple[str, ...]
    removed: tuple[str, ...]

    def __init__(self, kept: Iterable[str], removed: Iterable[str]):
        object.__setattr__(self, "kept", tuple(kept))
        object.__setattr__(self, "removed", tuple(removed))
        names = self.kept + self.removed
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(f"a plan must name each layer once, but this one repeats {', '.join(twice)}")

    @classmethod
    def without(cls, layers: Sequence[Layer], removed: Iterable[int]) -> "Plan":
        """Make the plan that removes the layers with these indices and keeps all others."""
        indices = set(removed)
        names = [layer.name for layer in layers]
        return cls(
            kept=[name for i, name in enumerate(names) if i not in indices],
            removed=[name for i, name in enumerate(names) if i in indices],
        )

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> "Plan":
        """Return the plan that turned the dense network into a pruned one, from the pruned network's record."""
        return cls(architecture.kept, architecture.removed)

    @property
    def removed_modules(self) -> tuple[str, ...]:
        """The paths of all removed modules; a layer can have several."""
        return tuple(path for name in self.removed for path in module_paths(name))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; equal plans give identical files."""
        text = json.dumps({"kept": self.kept, "removed": self.removed}, indent=2) + "\n"
        with new_file(path) as new:
            new.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is not a plan.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            kept, removed = content["kept"], content["removed"]
            if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (kept, removed)):
                raise TypeError("not lists of names")
            return cls(kept, removed)
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{path} is not a plan: it must be JSON with the lists 'kept' and 'removed'") from error
