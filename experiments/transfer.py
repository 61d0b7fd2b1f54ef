"""Is a pruned network a good start for another data set? Against the dense one, and against what rivals left.

``python -m experiments.transfer SOURCE TARGET method=sglp,random,tail`` prunes and fine-tunes the workload SOURCE with
every method, trains TARGET with its recipe `pretrain` from each of the networks, and writes reports/transfer.html and
.csv.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from experiments import runs
from experiments.cells import amount, number
from experiments.chain import label, network, of, start_from
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.page import Page, cost_of, draw, quality_of, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table
from sglp.errors import SGLPError
from stages.support.params import flat

DENSE = "dense"


class Start(NamedTuple):
    """A network that the target began with: the experiments' names, and the metrics on both data sets."""

    source_run: str
    target_run: str
    source: dict
    target: dict


def starts(source: str, target: str, points: Sequence[dict[str, object]], snapshot: Snapshot) -> dict[str, Start]:
    """Run the source for every point and the target from what each left, by label; what is known is not run again.

    Args:
        source, target: workloads.
        points: dials, without the model; those of the target's file count for the target alone.
        snapshot: the project that they run in.

    Raises:
        RunError: a run fails, as where the target's network can't start from the source's.
    """
    own = of(target, "")
    training = {key: value for key, value in points[0].items() if key.startswith(own)} | {"model": target}
    found: dict[str, Start] = {}
    for dials in tqdm(points, desc=f"{source} to {target}", unit="start", disable=None):
        pruning = {key: value for key, value in dials.items() if not key.startswith(own)} | {"model": source}
        run = runs.run(pruning, snapshot=snapshot)
        metrics = json.loads(runs.read(run, "reports/metrics.json", snapshot.baseline))
        for name, which in ((DENSE, "dense"), (label(dials, points, snapshot), "finetuned")):
            if name not in found:
                start = start_from(network(run, snapshot, which), target, snapshot, train=True)
                further = runs.run(training | start, target="evaluate@dense", snapshot=snapshot)
                measured = flat(json.loads(runs.read(further, "reports/metrics/dense.json", snapshot.baseline)))
                found[name] = Start(run, further, flat(metrics[which]), measured)
    return found


def main(source: str, target: str, arguments: Sequence[str]) -> None:
    """Run all, write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    points = parse(arguments)
    if any("model" in dials for dials in points):
        raise RunError("model is no dial here: the first two names say which workloads are meant")
    several = [key for key in points[0] if key.startswith(of(target, "")) and len({str(p[key]) for p in points}) > 1]
    if several:
        raise RunError(f"{several[0]} has several values: all starts must be trained by one recipe to be compared")
    snapshot = Snapshot.take()
    check([dials | {"model": name} for dials in points for name in (source, target)], snapshot)
    with alone():
        found = starts(source, target, points, snapshot)
    keys = list(dict.fromkeys(key for start in found.values() for key in (*start.source, *start.target)))
    columns = ["start", "source_experiment", "target_experiment"]
    columns += [f"{which}.{key}" for which in ("source", "target") for key in keys]
    rows = [
        [name, start.source_run, start.target_run]
        + [metrics.get(key, "") for metrics in (start.source, start.target) for key in keys]
        for name, start in found.items()
    ]
    command = f"python -m experiments.transfer {shlex.join([source, target, *arguments])}"
    write("transfer", page(found, source, target, command), columns, rows)


def page(found: dict[str, Start], source: str, target: str, command: str) -> Page:
    """What is told of the starts."""
    dense = found[DENSE].target
    quality, (cost, cost_label) = quality_of(dense), cost_of(dense)
    here, there = quality_of(found[DENSE].source), f"{quality.label} on {target}"
    rows, told = [], []
    for name, start in found.items():
        share, after = start.target[cost] / dense[cost], number(quality, start.target[quality.key])
        rows.append([name, f"{amount(start.target[cost])} ({100 * share:.0f} %)", amount(start.target["params"])])
        rows[-1] += [number(here, start.source[here.key]), after]
        told.append(f"{name} {after} at {100 * share:.0f} % of the MACs")
    curves = {name: [(start.target[cost], start.target[quality.key])] for name, start in found.items() if name != DENSE}
    level = ("dense network", dense[quality.key])
    return Page(
        title=f"Transfer: {source} to {target}",
        outcome=f"{quality.label[0].upper()}{quality.label[1:]} on {target}: {', '.join(told)}.",
        table=Table(["start", cost_label, "parameters", f"{here.label} on {source}", there], rows),
        words=("start",),
        figure=draw(curves, (cost_label, there), level, quality.share),
        notes=[
            f"Every network was trained on {source}; all but the dense one were pruned and fine-tuned there. Then they "
            f"were trained on {target} as a whole, by the recipe pretrain; where that has another number of classes, "
            "with a new head. All are measured on the test splits."
        ],
        command=command,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start another workload from pruned networks.")
    parser.add_argument("source", help="the workload that is pruned")
    parser.add_argument("target", help="the workload that starts from what is left")
    parser.add_argument("dials", nargs="*", metavar="DIAL=VALUES", help="as method=sglp,random prune_ratio=0.5")
    given = parser.parse_args()
    try:
        main(given.source, given.target, given.dials)
    except SGLPError as error:
        sys.exit(f"transfer: {error}")
