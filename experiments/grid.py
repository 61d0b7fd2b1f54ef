"""The points of a sweep: ``k=2..8 method=sglp,tail prune_ratio=0.25,0.5`` is every combination of the values."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from ruamel.yaml import YAML, YAMLError
from tqdm import tqdm

from experiments.git import RunError
from experiments.snapshot import PARAMS, Snapshot
from sglp.tasks.evaluation import find_evaluation
from sglp.tasks.schemas import schema_of
from stages.support.checks import check_params
from stages.support.dials import Params
from stages.support.params import check as check_file
from stages.support.userfiles import declared_file

COMMA = re.compile(r",(?![^\[]*\])")  # but not the commas of a list


def parse(arguments: Sequence[str]) -> list[dict[str, object]]:
    """The points that arguments DIAL=VALUES span, the values of the last dial changing fastest.

    Values are YAML, separated by commas; 2..8 is every whole number from 2 to 8.

    Raises:
        RunError: an argument is not of this form.
    """
    values: dict[str, list] = {}
    for argument in arguments:
        dial, equals, text = argument.partition("=")
        if not (dial and equals and text):
            raise RunError(f"'{argument}' is no DIAL=VALUES, as k=2..8 or method=sglp,tail")
        if dial in values:
            raise RunError(f"{dial} stands twice: write its values after one another, as {dial}=1,2")
        values[dial] = [value for part in COMMA.split(text) for value in _values(dial, part)]
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


def check(points: Iterable[dict[str, object]], snapshot: Snapshot, files_too: bool = True) -> None:
    """Check the parameters of all points as stages do, before anything runs.

    Args:
        points: their dials.
        snapshot: the project.
        files_too: whether the user's files have to be there.

    Raises:
        SGLPError: one sentence on the first fault.
    """
    files, dials, workloads = {PARAMS}, set(), set()
    for point in tqdm(points, desc="checking", unit="point", disable=None, leave=False):
        (_, params), (path, workload) = snapshot.values(point).items()
        files, dials = files | {path}, dials | point.keys()
        check_file(Params, params, Path(PARAMS))
        check_file(schema_of(workload), workload, Path(path))
        check_params(params)
        if "prune_ratio" in point and params["target"] is not None:
            raise RunError(f"prune_ratio changes nothing where target={params['target']}: add target=null to the grid")
        if repr(workload) not in workloads:
            for name, file in workload["files"].items() if files_too else ():
                declared_file(Path(path), name, file)
            find_evaluation(workload["task"]).check_workload(workload)
            workloads.add(repr(workload))
    for dial in sorted(dials):
        file = dial.rpartition(":")[0] or PARAMS
        if file not in files:
            raise RunError(f"{dial} changes nothing: {file} is neither {PARAMS} nor the workload of a point")


def _values(dial: str, text: str) -> list:
    numbers = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
    if numbers:
        first, last = map(int, numbers.groups())
        if last < first:
            raise RunError(f"{dial}={text} holds no number: the first is larger than the last")
        return list(range(first, last + 1))
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise RunError(f"{dial}: {text!r} is no value in YAML") from error
    if not text.strip():
        raise RunError(f"{dial} has an empty value between its commas; null is written null")
    return [value]
