"""What several workers do side by side, so that nothing is done twice: one run for all the points that ask the same of
some stages. What is timed comes later, alone."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.snapshot import PARAMS, Snapshot, value_of

TIMED = "benchmark"  # neither it nor what follows in dvc.yaml may run beside others
MERGING = ("segment", "score")  # different dials often lead to the same: who goes on together is known when it is there


@dataclass(frozen=True)
class Stage:
    """An entry of dvc.yaml: paths of its dependencies and outputs, and (file, key) of its parameters."""

    name: str
    deps: list[str]
    outs: list[str]
    params: list[tuple[str, str]]


class Schedule:
    """Points on their way through the stages, each as fast as it can.

    Args:
        snapshot: the project.
        points: dials by the names of runs.

    Attributes:
        steps: stages that a point goes through in one run, in order. Where points part, and where they may come
            together, a step ends.
    """

    def __init__(self, snapshot: Snapshot, points: dict[str, dict[str, object]]):
        stages = _stages(snapshot.read("dvc.yaml"))
        self._makers = {out: stage for stage in stages for out in stage.outs}
        self._values = {name: snapshot.values(dials) for name, dials in points.items()}
        self._checksums: dict[str, dict[str, str]] = {name: {} for name in points}
        self.steps = self._in_steps(sorted(stages, key=self._depth))

    def targets(self, step: Sequence[Stage]) -> list[str]:
        """The names of the last stages of a step."""
        used = {path for stage in step for path in stage.deps}
        return [stage.name for stage in step if not used & set(stage.outs)]

    def question(self, name: str, step: Sequence[Stage]) -> str:
        """All that the results of a step depend on: points with the same question have the same answer."""
        return json.dumps([self._question(name, stage) for stage in step])

    def arrived(self, name: str, step: Sequence[Stage], checksums: dict[str, str]) -> dict[str, str]:
        """A point is through a step.

        Args:
            name: of the point's run.
            step: the stages.
            checksums: of what they and others wrote, by path.

        Returns:
            The checksums of all that the point has by now.
        """
        self._checksums[name] |= {path: checksums[path] for stage in step for path in stage.outs}
        return self._checksums[name]

    def _in_steps(self, stages: Sequence[Stage]) -> list[list[Stage]]:
        steps: list[list[Stage]] = []
        before = None
        for stage in stages:
            groups = self._groups(stage)
            if groups != before:
                steps.append([])
            steps[-1].append(stage)
            before = None if stage.name in MERGING else groups
        return steps

    def _depth(self, stage: Stage) -> int:
        """How many stages have to run before one."""
        return 1 + max((self._depth(self._makers[path]) for path in stage.deps if path in self._makers), default=0)

    def _groups(self, stage: Stage) -> list[list[str]]:
        """The points that ask the same, as far as is known before anything has run."""
        groups = defaultdict(list)
        for name in self._checksums:
            groups[self._question(name, stage)].append(name)
        return list(groups.values())

    def _question(self, name: str, stage: Stage) -> str:
        """All that a stage's result depends on; of an output that is not there yet, all that it will depend on."""
        values, checksums = self._values[name], self._checksums[name]
        params = [_value(values, path, key) for path, key in stage.params]
        inputs = [
            checksums.get(path) or self._question(name, self._makers[path])
            for path in stage.deps
            if path in self._makers
        ]
        return json.dumps([stage.name, params, inputs], default=str)


def _stages(content: dict) -> list[Stage]:
    """The stages that come before the timed one, in order; those of a foreach one by one."""
    stages = []
    for name, entry in content["stages"].items():
        if name == TIMED:
            break
        for item in entry.get("foreach", [None]):
            text = json.dumps(entry.get("do", entry)).replace("${item}", str(item))
            one = json.loads(text)
            stages.append(
                Stage(
                    name=name if item is None else f"{name}@{item}",
                    deps=one.get("deps", []),
                    outs=[out if isinstance(out, str) else next(iter(out)) for out in one.get("outs", [])],
                    params=[
                        (path, key)
                        for listed in one.get("params", [])
                        for path, keys in ({PARAMS: [listed]} if isinstance(listed, str) else listed).items()
                        for key in keys
                    ],
                )
            )
    return stages


def _value(values: dict[str, dict], path: str, key: str):
    """A parameter, None where there is none; the path of a file may hold one of params.yaml, as ${model}."""
    return value_of(values.get(re.sub(r"\$\{(\w+)\}", lambda found: str(values[PARAMS][found[1]]), path)), key)
