"""How good a start pruned networks are for another data set, compared with the dense network and with baselines.

``python -m experiments.transfer SOURCE TARGET method=sglp,random,tail`` prunes and fine-tunes the workload SOURCE with
every method, trains TARGET from each network with its recipe `pretrain`, and writes reports/transfer.html and .csv.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import chain, runs
from experiments.cells import amount, number
from experiments.errors import RunError
from experiments.grid import check, parse
from experiments.page import Page, cost_of, draw, quality_of, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table
from stages.support.params import flat

DENSE = "dense"


class Start(NamedTuple):
    """A network from which the target was trained: both experiments' names, and the metrics on both data sets."""

    source_run: str
    target_run: str
    source: dict[str, Any]
    target: dict[str, Any]


def run_starts(source: str, target: str, points: Sequence[dict[str, object]], snapshot: Snapshot) -> dict[str, Start]:
    """Run the source for every point, and the target from each resulting network; known runs are reused.

    Args:
        source: the workload to prune.
        target: the workload to train.
        points: parameters without the model; parameters in the target's file apply to the target only.
        snapshot: the project's files.

    Returns:
        The starts by their labels.

    Raises:
        RunError: a run fails, for example because the target's network can't start from the source's.
    """
    prefix = chain.workload_key(target, "")
    training = {key: value for key, value in points[0].items() if key.startswith(prefix)} | {"model": target}
    starts: dict[str, Start] = {}
    for point in tqdm(points, desc=f"{source} to {target}", unit="start", disable=None):
        pruning = {key: value for key, value in point.items() if not key.startswith(prefix)} | {"model": source}
        run = runs.run(pruning, snapshot=snapshot)
        metrics = json.loads(runs.read(run, "reports/metrics.json", snapshot.baseline))
        for name, which in ((DENSE, "dense"), (chain.label(point, points, snapshot), "finetuned")):
            if name not in starts:
                start = chain.start_from(chain.network(run, snapshot, which), target, snapshot, train=True)
                target_run = runs.run(training | start, target="evaluate@dense", snapshot=snapshot)
                measured = json.loads(runs.read(target_run, "reports/metrics/dense.json", snapshot.baseline))
                starts[name] = Start(run, target_run, flat(metrics[which]), flat(measured))
    return starts


def main(source: str, target: str, params: Sequence[str]) -> None:
    """Run everything, and write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    points = parse(params)
    if any("model" in point for point in points):
        raise RunError("model can't be set here: the first two arguments are the workloads")
    for key, value in points[0].items():
        if key.startswith(chain.workload_key(target, "")) and any(str(point[key]) != str(value) for point in points):
            raise RunError(f"{key} has several values: starts are comparable only if one recipe trains all of them")
    snapshot = Snapshot.take()
    check([point | {"model": model} for point in points for model in (source, target)], snapshot)
    with alone():
        starts = run_starts(source, target, points, snapshot)
    keys = list(dict.fromkeys(key for start in starts.values() for key in (*start.source, *start.target)))
    rows = [
        {"start": name, "source_experiment": start.source_run, "target_experiment": start.target_run}
        | {f"source.{key}": start.source.get(key, "") for key in keys}
        | {f"target.{key}": start.target.get(key, "") for key in keys}
        for name, start in starts.items()
    ]
    command = shlex.join(["python", "-m", "experiments.transfer", source, target, *params])
    write("transfer", page(starts, source, target, command), *chain.csv_table(rows))


def page(starts: dict[str, Start], source: str, target: str, command: str) -> Page:
    """Return the page of some starts."""
    dense = starts[DENSE].target
    quality = quality_of(dense)
    cost, cost_label = cost_of(dense)
    source_quality, label = quality_of(starts[DENSE].source), f"{quality.label} on {target}"
    cells, outcomes = [], []
    curves: dict[str, Sequence[tuple[float, float]]] = {}
    for name, (_, _, before, after) in starts.items():
        share, value = f"{100 * after[cost] / dense[cost]:.0f} %", number(quality, after[quality.key])
        cells.append([name, f"{amount(after[cost])} ({share})", amount(after["params"])])
        cells[-1] += [number(source_quality, before[source_quality.key]), value]
        outcomes.append(f"{name} {value} at {share} of the MACs")
        if name != DENSE:
            curves[name] = [(after[cost], after[quality.key])]
    columns = ["start", cost_label, "parameters", f"{source_quality.label} on {source}", label]
    return Page(
        title=f"Transfer: {source} to {target}",
        outcome=f"{label[0].upper()}{label[1:]}: {', '.join(outcomes)}.",
        table=Table(columns, cells),
        words=("start",),
        figure=draw(curves, (cost_label, label), ("dense network", dense[quality.key]), quality.share),
        notes=[
            f"Every network was trained on {source}; all but the dense one were pruned and fine-tuned there. The whole "
            f"network was then trained on {target} by the recipe pretrain, with a new head if the number of classes "
            "differs. All metrics are from the test splits."
        ],
        command=command,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train another workload from pruned networks.")
    parser.add_argument("source", help="the workload to prune")
    parser.add_argument("target", help="the workload to train from the pruned networks")
    chain.run_program("transfer", main, parser)
