"""Pruning in rounds: some layers go, what is left is fine-tuned, the next ones go. Each round is an ordinary run.

``python -m experiments.rounds --rounds 3 --layers 1 model=NAME method=cka_greedy`` writes reports/rounds.html and .csv.
With one layer a round this is the way of arXiv 2405.17081. Several values of a dial are chains side by side.
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
from experiments.chain import files, label, network, prune_ratio, refuse_target, removable, start_from
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.page import Page, cost_of, draw, quality_of, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table
from sglp.errors import SGLPError
from sglp.record import saved_architecture
from stages.support.params import flat

NOTE = (
    "Each round starts from the fine-tuned network of the round before, so that after n rounds it was "
    "fine-tuned n times; round 0 is the dense network. Layers go by their names in that one. All networks are "
    "measured on the test split, by which nothing is chosen."
)


class Round(NamedTuple):
    """What a chain had after a round; the first one is the dense network.

    Attributes:
        run: the experiment's name.
        removed: the layers that went, by their names in the dense network.
        left: how many layers are left.
        before: the metrics before fine-tuning.
        after: and after it.
    """

    run: str
    removed: tuple[str, ...]
    left: int
    before: dict
    after: dict


def chain(dials: dict[str, object], snapshot: Snapshot, rounds: int, layers: int) -> list[Round]:
    """Run the rounds; those that are known are not run again.

    Args:
        dials: of all rounds.
        snapshot: the project that they run in.
        rounds: how many.
        layers: how many layers go in each.

    Raises:
        RunError: a run fails, or the network has not so many layers that can go.
    """
    model = files(dials, snapshot)[0]["model"]
    free, _ = removable(runs.run(dials, target="segment", snapshot=snapshot), snapshot)
    if rounds * layers > free:
        raise RunError(f"{rounds} rounds of {layers} layers are too many: {free} layers of {model} can be removed")
    found: list[Round] = []
    start: dict[str, object] = {}
    for done in tqdm(range(rounds), desc=model, unit="round", disable=None):
        # A layer that can go does not change the shape of what it is given, and so makes no other one immovable.
        ratio = {"prune_ratio": prune_ratio(layers, free - done * layers)}
        run = runs.run(dials | ratio | start, snapshot=snapshot)
        folder = network(run, snapshot)
        architecture = saved_architecture(folder)
        content = json.loads(runs.read(run, "reports/metrics.json", snapshot.baseline))
        metrics = {name: flat(values) for name, values in content.items()}
        left, removed = len(architecture.kept), architecture.removed[-layers:]
        if not found:
            found.append(Round(run, (), left + len(removed), {}, metrics["dense"]))
        found.append(Round(run, removed, left, metrics["pruned"], metrics["finetuned"]))
        start = start_from(folder, model, snapshot, train=False)
    return found


def main(arguments: Sequence[str], rounds: int, layers: int) -> None:
    """Run a chain for every point of the dials, write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    points, snapshot = parse(arguments), Snapshot.take()
    if rounds < 1 or layers < 1:
        raise RunError(f"--rounds {rounds} --layers {layers} is wrong: both must be at least 1")
    if "prune_ratio" in points[0]:
        raise RunError("prune_ratio is no dial of rounds: --layers says how many layers go in each")
    check(points, snapshot)
    refuse_target(points, snapshot)
    for dials in points:
        params, workload = files(dials, snapshot)
        if workload["layers"] is not None:
            raise RunError(
                f"models/{params['model']}.yaml: layers={workload['layers']} are the dense network's names, which "
                "others have after a round: set it to null"
            )
    models = list(dict.fromkeys(files(dials, snapshot)[0]["model"] for dials in points))
    if len(models) > 1:
        raise RunError(f"model={','.join(models)} is too much for one page: choose one")
    with alone():
        chains = {label(dials, points, snapshot): chain(dials, snapshot, rounds, layers) for dials in points}
    command = f"python -m experiments.rounds --rounds {rounds} --layers {layers} {shlex.join(arguments)}".strip()
    write("rounds", page(chains, models[0], command), *rows(chains))


def page(chains: dict[str, list[Round]], model: str, command: str) -> Page:
    """What is told of the chains."""
    dense = next(iter(chains.values()))[0].after
    quality, (cost, cost_label) = quality_of(dense), cost_of(dense)
    table, told, curves = [], [], {}
    for name, found in chains.items():
        for place, one in enumerate(found):
            row = [name, str(place), ", ".join(one.removed), str(one.left)]
            row += [amount(one.after[cost]), amount(one.after["params"])]
            table.append([*row, *(number(quality, m[quality.key]) if m else "" for m in (one.before, one.after))])
        curves[name] = [(one.after[cost], one.after[quality.key]) for one in found]
        first, last = found[0], found[-1]
        told.append(
            f"{name}: {first.left - last.left} of {first.left} layers gone after round {len(found) - 1}, "
            f"{100 * (1 - last.after[cost] / first.after[cost]):.1f} % fewer MACs, {quality.label} "
            f"{number(quality, first.after[quality.key])} → {number(quality, last.after[quality.key])}"
        )
    columns = [
        "chain",
        "round",
        "layers that go",
        "layers left",
        cost_label,
        "parameters",
        "before tuning",
        quality.label,
    ]
    level = ("dense network", dense[quality.key])
    return Page(
        title=f"Pruning in rounds: {model}",
        outcome=f"{'; '.join(told)}.",
        table=Table(columns, table),
        words=("chain", "layers that go"),
        figure=draw(curves, (cost_label, quality.label), level, quality.share),
        notes=[NOTE],
        command=command,
    )


def rows(chains: dict[str, list[Round]]) -> tuple[list[str], list[list]]:
    """Columns and rows of the table of numbers."""
    every = [(name, place, one) for name, found in chains.items() for place, one in enumerate(found)]
    keys = list(dict.fromkeys(key for _, _, one in every for key in one.after))
    table = [
        [name, place, one.run, " ".join(one.removed), one.left]
        + [metrics.get(key, "") for metrics in (one.after, one.before) for key in keys]
        for name, place, one in every
    ]
    columns = ["chain", "round", "experiment", "removed", "layers_left", *keys]
    return [*columns, *(f"before_tuning.{key}" for key in keys)], table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prune in rounds, each fine-tuned before the next.")
    parser.add_argument("--rounds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--layers", type=int, default=1, help="how many layers go in each (default: 1)")
    parser.add_argument("dials", nargs="*", metavar="DIAL=VALUES", help="as method=sglp,cka_greedy or seed=0")
    given = parser.parse_intermixed_args()
    try:
        main(given.dials, given.rounds, given.layers)
    except SGLPError as error:
        sys.exit(f"rounds: {error}")
