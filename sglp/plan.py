"""Plan: which layers of a network stay and which go."""

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
    """Which layers stay and which go, by the names that `find_layers` gave them, in order of execution.

    Args:
        kept: names of the layers that stay.
        removed: names of the layers that go.

    Raises:
        PlanError: a layer is named twice.
    """

    kept: tuple[str, ...]
    removed: tuple[str, ...]

    def __init__(self, kept, removed):
        object.__setattr__(self, "kept", tuple(kept))
        object.__setattr__(self, "removed", tuple(removed))
        names = self.kept + self.removed
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PlanError(f"a plan names each layer once, but {', '.join(twice)} stands in it more than once")

    @classmethod
    def without(cls, layers: Sequence[Layer], removed: Iterable[int]) -> "Plan":
        """The plan that removes layers by their indices and keeps all others."""
        gone = set(removed)
        names = [layer.name for layer in layers]
        return cls(
            kept=[name for i, name in enumerate(names) if i not in gone],
            removed=[name for i, name in enumerate(names) if i in gone],
        )

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> "Plan":
        """The plan that leads from the dense network to a pruned one, as the pruned network remembers it."""
        return cls(architecture.kept, architecture.removed)

    @property
    def removed_modules(self) -> tuple[str, ...]:
        """The paths of all modules that are removed; a layer can have several."""
        return tuple(path for name in self.removed for path in module_paths(name))

    def save(self, path) -> None:
        """Write the plan as JSON: two plans with the same layers are the same bytes."""
        text = json.dumps({"kept": self.kept, "removed": self.removed}, indent=2) + "\n"
        with new_file(path) as new:
            new.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is no such plan.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            kept, removed = content["kept"], content["removed"]
            if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (kept, removed)):
                raise TypeError("not lists of names")
            return cls(kept, removed)
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{path} is not a plan: a plan is JSON with the lists 'kept' and 'removed'") from error
