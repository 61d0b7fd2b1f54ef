"""How much to prune: the deepest cut whose loss on held-out training data stays within a tolerance after healing.

``python -m experiments.how_much --tolerance 0.05 model=NAME models/NAME.yaml:finetune.epochs=2`` writes
reports/how_much.html and .csv. Every cut is an ordinary run up to fine-tuning: the test split is never read. The
reference is the same run with nothing removed: the dense network with the same healing.
"""

import argparse
import csv
import shlex
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from experiments import runs
from experiments.chain import files, of, prune_ratio, refuse_target, removable
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.page import Page, draw, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table
from sglp.errors import SGLPError

COARSE = 4  # cuts that are tried first, besides none
HELD_OUT = 0.1  # share of the training split, where the workload holds none out
NOTE = (
    "All cuts that were tried, each an ordinary run up to fine-tuning; the test split was not read. The loss "
    "is the mean cross-entropy at the last step of healing, on samples of the training split that healing did "
    "not see. With nothing removed it is that of the dense network after the same healing. Cuts over the "
    "whole range were tried first, then those between the deepest one within the tolerance and the next one "
    "that was tried: one layer more than the answer is too much, or can't go. Of deeper cuts that were not "
    "tried nothing is known: the loss need not grow with the cut. All of it is of one seed: ask again with another one."
)
SEEN = (
    "The dense network may have seen the held-out samples: its weights were brought along, or its recipe draws another "
    "number of samples."
)
UNSEEN = "The dense network was trained anew, without the held-out samples."


def search(loss: Callable[[int], float], most: int, tolerance: float, coarse: int = COARSE) -> tuple[int, dict]:
    """The deepest cut that is known to stay within a tolerance, and the losses of all cuts that were tried.

    The loss need not grow with the cut, so that no bisection can find the deepest one of all. Cuts over the whole range
    are tried first; then the gap between the deepest one within the tolerance and the next one that was tried is halved
    until nothing is between them. One more layer than the answer is therefore known to be too much, or impossible.

    Args:
        loss: of a number of layers that go; that of 0 is the reference.
        most: the largest number.
        tolerance: how much more than the reference's a loss may be.
        coarse: how many cuts are tried first, besides 0.
    """
    losses = {cut: loss(cut) for cut in sorted({round(most * i / coarse) for i in range(coarse + 1)})}
    while True:
        deepest = max(cut for cut, value in losses.items() if value <= losses[0] + tolerance)
        beyond = min((cut for cut in losses if cut > deepest), default=deepest + 1)
        if beyond == deepest + 1:
            return deepest, dict(sorted(losses.items()))
        middle = (deepest + beyond) // 2
        losses[middle] = loss(middle)


def held_out(dials: dict[str, object], snapshot: Snapshot) -> tuple[dict[str, object], bool]:
    """The dials that hold samples out of healing, and whether pretraining, too, is kept from seeing them.

    Where the dense network is trained here from random weights, it is trained without the same samples: the draw is
    the same for the same seed, number of samples and share.
    """
    params, workload = files(dials, snapshot)
    share = workload["finetune"]["holdout"] or HELD_OUT
    found = {"finetune.holdout": share, "finetune.keep": "last"}
    unseen = workload["weights"]["source"] == "random"
    unseen = unseen and workload["pretrain"]["samples"] == workload["finetune"]["samples"]
    if unseen:
        found |= {"pretrain.holdout": share, "pretrain.keep": "last", "pretrain.seed": params["seed"]}
    return dials | {of(params["model"], key): value for key, value in found.items()}, unseen


def main(arguments: Sequence[str], tolerance: float) -> None:
    """Search, write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    points = parse(arguments)
    if len(points) > 1:
        raise RunError(f"{len(points)} questions are too many for one page: give each dial one value")
    if "prune_ratio" in points[0]:
        raise RunError("prune_ratio is what is searched for, and no dial here")
    if not tolerance >= 0:
        raise RunError(f"--tolerance {tolerance:g} is wrong: it must be at least 0")
    snapshot = Snapshot.take()
    check(points, snapshot)
    refuse_target(points, snapshot)
    dials, unseen = held_out(points[0], snapshot)
    params, _ = files(dials, snapshot)
    names: dict[int, str] = {}
    with alone(), tqdm(desc=params["model"], unit="cut", disable=None) as bar:
        free, most = removable(runs.run(dials, target="segment", snapshot=snapshot), snapshot)

        def loss(cut: int) -> float:
            ratio = {"prune_ratio": prune_ratio(cut, free)}
            names[cut] = runs.run(points[0] | ratio | dials, target="finetune", snapshot=snapshot)
            bar.update()
            *_, last = csv.DictReader(runs.read(names[cut], "reports/training.csv", snapshot.baseline).splitlines())
            return float(last["heldout_loss"])

        deepest, losses = search(loss, most, tolerance)
    command = f"python -m experiments.how_much --tolerance {tolerance:g} {shlex.join(arguments)}".strip()
    found = page(f"{params['model']}, {params['method']}", losses, deepest, free, tolerance, command)
    columns = ("experiment", "removed_layers", "prune_ratio", "heldout_loss", "within")
    rows = [
        (names[cut], cut, prune_ratio(cut, free), repr(value), int(value <= losses[0] + tolerance))
        for cut, value in losses.items()
    ]
    write("how_much", found._replace(notes=[*found.notes, UNSEEN if unseen else SEEN]), columns, rows)


def page(what: str, losses: dict[int, float], deepest: int, free: int, tolerance: float, command: str) -> Page:
    """What is told of the search."""
    limit = losses[0] + tolerance
    rows = []
    for cut, value in losses.items():
        within = "yes" if value <= limit else "no"
        rows.append([str(cut), f"{prune_ratio(cut, free):g}", f"{value:.4f}", f"{value - losses[0]:+.4f}", within])
    labels = ("layers that go", "loss on held-out samples")
    return Page(
        title=f"How much to prune: {what}",
        outcome=f"{deepest} of {free} removable layers can go (prune_ratio={prune_ratio(deepest, free):g}): the loss "
        f"on held-out samples is then {losses[deepest]:.4f}; the dense network's is {losses[0]:.4f}, and at most "
        f"{limit:.4f} is allowed.",
        table=Table(["layers that go", "prune_ratio", "held-out loss", "change", "within the tolerance"], rows),
        words=("within the tolerance",),
        figure=draw({"after healing": list(losses.items())}, labels, ("the most allowed", limit)),
        notes=[NOTE],
        command=command,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search for the deepest cut within a tolerance.")
    told = "how much the held-out loss may grow, in nats (default: 0.05)"
    parser.add_argument("--tolerance", type=float, default=0.05, help=told)
    parser.add_argument("dials", nargs="*", metavar="DIAL=VALUE", help="as method=sglp or k=5")
    given = parser.parse_intermixed_args()
    try:
        main(given.dials, given.tolerance)
    except SGLPError as error:
        sys.exit(f"how_much: {error}")
