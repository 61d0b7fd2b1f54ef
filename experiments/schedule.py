"""The order in which several workers run stages, so that points with the same parameters and inputs share a run.

Stages that measure time are not part of it; they run alone afterwards.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.snapshot import PARAMS, Snapshot
from experiments.yaml_files import get_value

TIMED = "benchmark"  # this stage and later ones in dvc.yaml must not run while others do
MERGING = ("segment", "score")  # different parameters often give the same outputs here, known only after the run


@dataclass(frozen=True)
class Stage:
    """A stage in dvc.yaml: paths of its dependencies and outputs, and (file, key) of its parameters."""

    name: str
    deps: list[str]
    outs: list[str]
    params: list[tuple[str, str]]


class Schedule:
    """The steps of all points through the stages.

    Args:
        snapshot: the project's files.
        points: parameters by the names of runs.

    Attributes:
        steps: lists of stages, in order. A point goes through the stages of a step in one run. A step ends where points
            part, and where they may meet.
    """

    def __init__(self, snapshot: Snapshot, points: dict[str, dict[str, object]]):
        stages = _stages(snapshot.read("dvc.yaml"))
        self._makers = {out: stage for stage in stages for out in stage.outs}
        self._values = {name: snapshot.values(params) for name, params in points.items()}
        self._checksums: dict[str, dict[str, str]] = {name: {} for name in points}
        self.steps: list[list[Stage]] = []
        previous = None
        for stage in sorted(stages, key=self._depth):
            groups: dict[str, list[str]] = {}
            for name in points:
                groups.setdefault(self._stage_key(name, stage), []).append(name)
            if list(groups.values()) != previous:
                self.steps.append([])
            self.steps[-1].append(stage)
            previous = None if stage.name in MERGING else list(groups.values())

    def targets(self, step: Sequence[Stage]) -> list[str]:
        """Return the names of a step's last stages."""
        used = {path for stage in step for path in stage.deps}
        return [stage.name for stage in step if not used & set(stage.outs)]

    def cache_key(self, name: str, step: Sequence[Stage]) -> str:
        """Return everything that a step's results depend on: points with the same key have the same results."""
        return json.dumps([self._stage_key(name, stage) for stage in step])

    def complete(self, name: str, step: Sequence[Stage], checksums: dict[str, str]) -> dict[str, str]:
        """Record the checksums of a completed step's outputs, and return those of all outputs that a point has now."""
        self._checksums[name] |= {path: checksums[path] for stage in step for path in stage.outs}
        return self._checksums[name]

    def _depth(self, stage: Stage) -> int:
        """Return the length of the longest chain of stages that ends with this stage."""
        return 1 + max((self._depth(self._makers[path]) for path in stage.deps if path in self._makers), default=0)

    def _stage_key(self, name: str, stage: Stage) -> str:
        """Return everything that a stage's results depend on, with the key of the stage for an unknown input."""
        params = [_value(self._values[name], path, key) for path, key in stage.params]
        inputs = [
            self._checksums[name].get(path) or self._stage_key(name, self._makers[path])
            for path in stage.deps
            if path in self._makers
        ]
        return json.dumps([stage.name, params, inputs], default=str)


def _stages(content: dict) -> list[Stage]:
    """List the stages before the timed one, in order, with each item of a foreach as a stage."""
    stages: list[Stage] = []
    for name, entry in content["stages"].items():
        if name == TIMED:
            break
        for item in entry.get("foreach", [None]):
            stage = json.loads(json.dumps(entry.get("do", entry)).replace("${item}", str(item)))
            outs = [out if isinstance(out, str) else next(iter(out)) for out in stage.get("outs", [])]
            files = [{PARAMS: [param]} if isinstance(param, str) else param for param in stage.get("params", [])]
            params = [(path, key) for file in files for path, keys in file.items() for key in keys]
            stages.append(Stage(name if item is None else f"{name}@{item}", stage.get("deps", []), outs, params))
    return stages


def _value(values: dict[str, dict], path: str, key: str) -> Any:
    """Return a parameter, or None if it is missing; a file's path may contain a value of params.yaml: ${model}."""
    return get_value(values.get(re.sub(r"\$\{(\w+)\}", lambda match: str(values[PARAMS][match[1]]), path)), key)
