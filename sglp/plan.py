"""Plan: which layers of a network stay and which go."""

import json
from dataclasses import dataclass
from pathlib import Path

from sglp.errors import PlanError
from sglp.files import new_file


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
