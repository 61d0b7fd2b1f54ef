"""How much to prune: the most layers whose removal keeps the loss on held-out training data within a tolerance.

``python -m experiments.how_much --tolerance 0.05 model=NAME models/NAME.yaml:finetune.epochs=2`` writes
reports/how_much.html and .csv. Every number of layers ("cut") is an ordinary run up to fine-tuning ("healing"), so the
test split is not read. The reference is the same run with nothing removed: the dense network with the same healing.
"""

import argparse
import csv
import shlex
from collections.abc import Callable, Sequence

from tqdm import tqdm

from experiments import chain, runs
from experiments.errors import RunError
from experiments.page import Page, draw, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table

COARSE = 4  # cuts besides 0 that are tried first
HELD_OUT = 0.1  # share of the training split to hold out, unless the workload has one
NOTE = (
    "All cuts that were tried, each in an ordinary run up to fine-tuning; the test split was not read. The loss is the "
    "mean cross-entropy at the last step of healing, on samples of the training split that healing did not use. With "
    "nothing removed, it is the loss of the dense network after the same healing. Cuts over the whole range were tried "
    "first, then cuts between the deepest one within the tolerance and the next one that was tried: one layer more "
    "than the answer is too much, or can't be removed. Deeper cuts that were not tried may be within the tolerance, "
    "because the loss need not grow with the cut. All runs have the same seed: repeat the search with another one."
)
SEEN = (
    "The dense network may have been trained on the held-out samples: its weights come from elsewhere, or its recipe "
    "draws another number of samples."
)
UNSEEN = "The dense network was trained anew, without the held-out samples."


def search(loss: Callable[[int], float], most: int, tolerance: float, coarse: int = COARSE) -> tuple[int, dict]:
    """Return the deepest cut that is known to be within a tolerance, and the losses of all cuts that were tried.

    The loss need not grow with the cut, so bisection can't find the deepest cut of all. Cuts over the whole range are
    tried first. Then the gap between the deepest cut within the tolerance and the next one that was tried is halved
    until they are adjacent. Removing one more layer is therefore known to be too much, or impossible.

    Args:
        loss: the loss after removing a number of layers; the loss after removing 0 is the reference.
        most: the largest number of layers.
        tolerance: how far a loss may exceed the reference.
        coarse: the number of cuts besides 0 to try first.
    """
    losses = {cut: loss(cut) for cut in sorted({round(most * i / coarse) for i in range(coarse + 1)})}
    while True:
        deepest = max(cut for cut, value in losses.items() if value <= losses[0] + tolerance)
        beyond = min((cut for cut in losses if cut > deepest), default=deepest + 1)
        if beyond == deepest + 1:
            return deepest, dict(sorted(losses.items()))
        middle = (deepest + beyond) // 2
        losses[middle] = loss(middle)


def held_out(params: dict[str, object], snapshot: Snapshot) -> tuple[dict[str, object], bool]:
    """Add parameters that hold samples out of healing, and return whether pretraining does not see them either.

    A dense network that is trained from random weights is trained without the same samples: equal seeds, numbers of
    samples and shares draw equal samples.
    """
    content, workload = chain.files(params, snapshot)
    share = workload["finetune"]["holdout"] or HELD_OUT
    added = {"finetune.holdout": share, "finetune.keep": "last"}
    unseen = workload["weights"]["source"] == "random"
    unseen = unseen and workload["pretrain"]["samples"] == workload["finetune"]["samples"]
    if unseen:
        added |= {"pretrain.holdout": share, "pretrain.keep": "last", "pretrain.seed": content["seed"]}
    return params | {chain.workload_key(content["model"], key): value for key, value in added.items()}, unseen


def main(params: Sequence[str], tolerance: float) -> None:
    """Search, and write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    snapshot = Snapshot.take()
    point, *others = chain.parse_points(params, snapshot, "the number of layers to remove is searched for")
    if others:
        raise RunError(f"{1 + len(others)} points are too many for one page: give each parameter one value")
    if not tolerance >= 0:
        raise RunError(f"--tolerance {tolerance:g} is wrong: it must be at least 0")
    settings, unseen = held_out(point, snapshot)
    content, _ = chain.files(settings, snapshot)
    names: dict[int, str] = {}
    with alone(), tqdm(desc=content["model"], unit="cut", disable=None) as bar:
        num_removable, most = chain.removable(runs.run(settings, target="segment", snapshot=snapshot), snapshot)

        def loss(cut: int) -> float:
            ratio = {"prune_ratio": chain.prune_ratio(cut, num_removable)}
            names[cut] = runs.run(point | ratio | settings, target="finetune", snapshot=snapshot)
            bar.update()
            *_, last = csv.DictReader(runs.read(names[cut], "reports/training.csv", snapshot.baseline).splitlines())
            return float(last["heldout_loss"])

        deepest, losses = search(loss, most, tolerance)
    limit = losses[0] + tolerance
    ratios = {cut: chain.prune_ratio(cut, num_removable) for cut in losses}
    rows = [(names[cut], cut, ratios[cut], loss, int(loss <= limit)) for cut, loss in losses.items()]
    cells = [
        [str(cut), f"{ratios[cut]:g}", f"{loss:.4f}", f"{loss - losses[0]:+.4f}", "yes" if loss <= limit else "no"]
        for cut, loss in losses.items()
    ]
    labels = ("removed layers", "loss on held-out samples")
    page = Page(
        title=f"How much to prune: {content['model']}, {content['method']}",
        outcome=f"{deepest} of {num_removable} removable layers can be removed (prune_ratio={ratios[deepest]:g}): the "
        f"loss on held-out samples is then {losses[deepest]:.4f}; the dense network's is {losses[0]:.4f}, and at most "
        f"{limit:.4f} is allowed.",
        table=Table(["removed layers", "prune_ratio", "held-out loss", "change", "within the tolerance"], cells),
        words=("within the tolerance",),
        figure=draw({"after healing": list(losses.items())}, labels, ("limit", limit)),
        notes=[NOTE, UNSEEN if unseen else SEEN],
        command=shlex.join(["python", "-m", "experiments.how_much", "--tolerance", f"{tolerance:g}", *params]),
    )
    write("how_much", page, ("experiment", "removed_layers", "prune_ratio", "heldout_loss", "within"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search for the most layers that can be removed within a tolerance.")
    help_text = "how much the held-out loss may grow, in nats (default: 0.05)"
    parser.add_argument("--tolerance", type=float, default=0.05, help=help_text)
    chain.run_program("how_much", main, parser)
