"""The points of a sweep: ``k=2..8 method=sglp,tail prune_ratio=0.25,0.5`` is every combination of the values."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from tqdm import tqdm

from experiments.errors import RunError
from experiments.snapshot import PARAMS, Snapshot
from experiments.yaml_files import parse as parse_yaml
from sglp.tasks.evaluation import find_evaluation
from sglp.tasks.schemas import schema_of
from stages.support.checks import check_params
from stages.support.params import check as check_file
from stages.support.schema import Params
from stages.support.userfiles import declared_file

COMMA = re.compile(r",(?![^\[]*\])")  # but not the commas of a list


def parse(arguments: Sequence[str]) -> list[dict[str, object]]:
    """Return the points of a grid, given as arguments KEY=VALUES; the values of the last key change fastest.

    Values are YAML, separated by commas. 2..8 is every whole number from 2 to 8.

    Raises:
        RunError: an argument does not have this form.
    """
    values: dict[str, list[object]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not (key and equals and text):
            raise RunError(f"'{argument}' is not KEY=VALUES, such as k=2..8 or method=sglp,tail")
        if key in values:
            raise RunError(f"{key} is given twice: separate its values with commas, as in {key}=1,2")
        values[key] = [value for part in COMMA.split(text) for value in _values(key, part)]
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


def check(points: Iterable[dict[str, object]], snapshot: Snapshot, files_too: bool = True) -> None:
    """Check the parameters of all points as stages do, before anything runs.

    Args:
        points: the parameters of each point.
        snapshot: the project's files.
        files_too: whether the user's files must exist.

    Raises:
        SGLPError: a parameter or file is wrong; one sentence on the first fault.
    """
    files = {PARAMS}
    keys: set[str] = set()
    workloads: set[str] = set()
    for point in tqdm(points, desc="checking", unit="point", disable=None, leave=False):
        (_, params), (path, workload) = snapshot.values(point).items()
        files.add(path)
        keys |= point.keys()
        check_file(Params, params, Path(PARAMS))
        check_file(schema_of(workload), workload, Path(path))
        check_params(params)
        if "prune_ratio" in point and params["target"] is not None:
            raise RunError(f"prune_ratio has no effect with target={params['target']}: add target=null to the grid")
        if repr(workload) not in workloads:
            for name, file in workload["files"].items() if files_too else ():
                declared_file(Path(path), name, file)
            find_evaluation(workload["task"]).check_workload(workload)
            workloads.add(repr(workload))
    for key in sorted(keys):
        file = key.rpartition(":")[0] or PARAMS
        if file not in files:
            raise RunError(f"{key} has no effect: {file} is neither {PARAMS} nor the workload of a point")


def _values(key: str, text: str) -> list[object]:
    """Return the values that a part of an argument stands for: a range's numbers, or one value."""
    if limits := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text):
        first, last = map(int, limits.groups())
        if last < first:
            raise RunError(f"{key}={text} is an empty range: the first number is larger than the last")
        return list(range(first, last + 1))
    value = parse_yaml(text, f"{key}={text}")
    if not text.strip():
        raise RunError(f"{key} has an empty value between its commas; null is written null")
    return [value]
