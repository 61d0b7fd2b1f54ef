"""Shared parts of the programs that run chains of experiments, in which a run can start from another run's network."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import runs
from experiments.errors import RunError
from experiments.grid import check, parse
from experiments.snapshot import Snapshot
from sglp.errors import SGLPError
from sglp.tasks.language_models import CODE
from stages.support.userfiles import checksum

NETWORKS = Path("data/raw/rounds")  # ignored by git and DVC


def run_program(name: str, main: Callable[..., None], parser: argparse.ArgumentParser) -> None:
    """Add the argument `params` and call a program's main function; an error ends the program with one sentence."""
    parser.add_argument("params", nargs="*", metavar="KEY=VALUES", help="such as method=sglp,cka_greedy or seed=0")
    try:
        main(**vars(parser.parse_intermixed_args()))
    except SGLPError as error:
        sys.exit(f"{name}: {error}")


def parse_points(arguments: Sequence[str], snapshot: Snapshot, instead: str) -> list[dict[str, object]]:
    """Parse and check the points of a program that chooses the number of removed layers itself.

    Args:
        arguments: the grid, as for `experiments.grid.parse`.
        snapshot: the project's files.
        instead: what chooses the number of layers, for the error.

    Raises:
        SGLPError: a point is wrong, or has a prune_ratio or target.
    """
    points = parse(arguments)
    if "prune_ratio" in points[0]:
        raise RunError(f"prune_ratio can't be set here: {instead}")
    check(points, snapshot)
    for params in points:
        if (target := files(params, snapshot)[0]["target"]) is not None:
            raise RunError(f"target={target} can't be met here: {instead}; set it to null")
    return points


def workload_key(model: str, key: str) -> str:
    """Return the name of a workload's parameter."""
    return f"models/{model}.yaml:{key}"


def files(params: dict[str, object], snapshot: Snapshot) -> tuple[dict, dict]:
    """Return the content of params.yaml and of the workload with these parameters."""
    content, workload = snapshot.values(params).values()
    return content, workload


def network(name: str, snapshot: Snapshot, which: str = "finetuned") -> Path:
    """Return the folder of a run's network, copied from DVC's cache if necessary.

    The folder is named by the network's checksum, because runs on commits with other code can have the same names.
    """
    folder = NETWORKS / runs.checksums(name, snapshot.baseline)[f"data/{which}"].removesuffix(".dir")
    if not folder.is_dir():
        runs.fetch(name, f"data/{which}", folder, snapshot.baseline)
    return folder


def start_from(folder: Path, model: str, snapshot: Snapshot, *, train: bool) -> dict[str, object]:
    """Return the parameters that start a workload from a saved network, with or without training by `pretrain`."""
    _, workload = files({"model": model}, snapshot)
    params = {
        "weights.source": "file",
        "weights.kwargs": {},
        "weights.train": train,
        "files.weights.path": folder.as_posix(),
        "files.weights.sha256": checksum(folder),
    }
    if workload["task"] == "causal_lm":  # the folder contains the configuration
        kwargs = workload["architecture"]["kwargs"]
        params["architecture.kwargs"] = {key: value for key, value in kwargs.items() if key == CODE}
    return {workload_key(model, key): value for key, value in params.items()}


def removable(name: str, snapshot: Snapshot) -> tuple[int, int]:
    """Return how many layers of a run's network can be removed, in all and within the run's segments."""
    rows = csv.DictReader(runs.read(name, "data/layers.csv", snapshot.baseline).splitlines())
    is_removable = [row["removable"] == "True" for row in rows]
    segments = json.loads(runs.read(name, "data/segments.json", snapshot.baseline))
    in_segments = (min(sum(is_removable[first : last + 1]), last - first) for first, last in segments)
    return sum(is_removable), sum(in_segments)


def prune_ratio(num_removed: int, num_removable: int) -> float:
    """Return the ratio that removes this number of the removable layers.

    Raises:
        RunError: the network has fewer removable layers.
    """
    if not 0 <= num_removed <= num_removable:
        raise RunError(f"{num_removed} layers can't be removed: {num_removable} layers of the network are removable")
    # The ratio must be below 1; stages round it to whole layers.
    return round(min(num_removed / num_removable, 1 - 0.25 / num_removable), 6)


def label(params: dict[str, object], points: Sequence[dict[str, object]], snapshot: Snapshot) -> str:
    """Return a point's name: the parameters in which the points differ, or else the method."""
    differing = [key for key in points[0] if len({str(other[key]) for other in points}) > 1]
    words = [str(params[key]) if key == "method" else f"{key}={params[key]}" for key in differing]
    return " · ".join(words) or files(params, snapshot)[0]["method"]


def csv_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and cells of a table; missing values are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[row.get(column, "") for column in columns] for row in rows]
