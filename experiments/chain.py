"""What chains of runs share: a run can start from the network of another one, and a cut is a number of layers."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from experiments import runs
from experiments.git import RunError
from experiments.snapshot import Snapshot
from sglp.tasks.language_models import CODE
from stages.support.userfiles import checksum

NETWORKS = Path("data/raw/rounds")  # git and DVC leave it alone


def of(model: str, key: str) -> str:
    """The name of a workload's dial."""
    return f"models/{model}.yaml:{key}"


def files(dials: dict[str, object], snapshot: Snapshot) -> tuple[dict, dict]:
    """The content of params.yaml and of the workload, with these dials."""
    params, workload = snapshot.values(dials).values()
    return params, workload


def network(name: str, snapshot: Snapshot, which: str = "finetuned") -> Path:
    """The folder with a run's network, fetched from DVC's cache unless it is there.

    Its name is the network's checksum: runs of other commits, which other code made, can have the same names.
    """
    folder = NETWORKS / runs.checksums(name, snapshot.baseline)[f"data/{which}"].removesuffix(".dir")
    if not folder.is_dir():
        runs.fetch(name, f"data/{which}", folder, snapshot.baseline)
    return folder


def start_from(folder: Path, model: str, snapshot: Snapshot, *, train: bool) -> dict[str, object]:
    """The dials with which a workload starts from a saved network, trained on with the recipe `pretrain` or not."""
    _, workload = files({"model": model}, snapshot)
    dials = {
        "weights.source": "file",
        "weights.kwargs": {},
        "weights.train": train,
        "files.weights.path": folder.as_posix(),
        "files.weights.sha256": checksum(folder),
    }
    if workload["task"] == "causal_lm":  # the folder brings the configuration
        kwargs = workload["architecture"]["kwargs"]
        dials["architecture.kwargs"] = {key: value for key, value in kwargs.items() if key == CODE}
    return {of(model, key): value for key, value in dials.items()}


def removable(name: str, snapshot: Snapshot) -> tuple[int, int]:
    """How many layers a run's network can lose, and how many it can lose in the segments of the run."""
    rows = csv.DictReader(runs.read(name, "data/layers.csv", snapshot.baseline).splitlines())
    free = [row["removable"] == "True" for row in rows]
    segments = json.loads(runs.read(name, "data/segments.json", snapshot.baseline))
    return sum(free), sum(min(sum(free[first : last + 1]), last - first) for first, last in segments)


def prune_ratio(layers: int, free: int) -> float:
    """The ratio that removes just so many of the layers that can go.

    Raises:
        RunError: there are not so many.
    """
    if not 0 <= layers <= free:
        raise RunError(f"{layers} layers can't go: {free} layers of the network can be removed")
    return round(min(layers / free, 1 - 0.25 / free), 6)  # it must be below 1, and is rounded to whole layers


def refuse_target(points: Sequence[dict[str, object]], snapshot: Snapshot) -> None:
    """Refuse a target where a chain says how many layers go.

    Raises:
        RunError: there is one.
    """
    for dials in points:
        target = files(dials, snapshot)[0]["target"]
        if target is not None:
            raise RunError(f"target={target} can't be met here, where the number of layers is said: set it to null")


def label(dials: dict[str, object], points: Sequence[dict[str, object]], snapshot: Snapshot) -> str:
    """What a point is called: the dials in which the points differ, else the method."""
    differing = [key for key in points[0] if len({str(other[key]) for other in points}) > 1]
    words = [str(dials[key]) if key == "method" else f"{key}={dials[key]}" for key in differing]
    return " · ".join(words) or files(dials, snapshot)[0]["method"]
