"""Pruning in rounds: each round removes some layers and fine-tunes the network. A round is an ordinary run.

``python -m experiments.rounds --rounds 3 --layers 1 model=NAME method=cka_greedy`` writes reports/rounds.html and .csv.
With one layer per round this is the procedure of arXiv 2405.17081. Several values of a parameter give several chains.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from experiments import chain, runs
from experiments.cells import amount, number
from experiments.errors import RunError
from experiments.page import Page, cost_of, draw, quality_of, write
from experiments.snapshot import Snapshot
from experiments.sweep import alone
from experiments.tables import Table
from sglp.record import saved_architecture
from stages.support.params import flat

NOTE = (
    "Each round starts from the previous round's fine-tuned network, so after n rounds the network has been fine-tuned "
    "n times; round 0 is the dense network. Removed layers are given by their names in the dense network. All metrics "
    "are from the test split, which decides nothing."
)


def run_chain(params: dict[str, object], snapshot: Snapshot, rounds: int, layers: int) -> list[dict[str, Any]]:
    """Run the rounds of a chain; known runs are reused.

    Args:
        params: the parameters of all rounds.
        snapshot: the project's files.
        rounds: the number of rounds.
        layers: the number of layers to remove in each round.

    Returns:
        A row of the CSV table for the dense network and for each round, with metrics after and before fine-tuning.

    Raises:
        RunError: a run fails, or the network has too few removable layers.
    """
    model = chain.files(params, snapshot)[0]["model"]
    num_removable, _ = chain.removable(runs.run(params, target="segment", snapshot=snapshot), snapshot)
    if rounds * layers > num_removable:
        raise RunError(
            f"{rounds} rounds of {layers} layers are too many: {num_removable} layers of {model} can be removed"
        )
    rows: list[dict[str, Any]] = []
    start: dict[str, object] = {}
    for index in tqdm(range(rounds), desc=model, unit="round", disable=None):
        # Removable layers do not change the shape of their input, so removing one leaves the others removable.
        ratio = {"prune_ratio": chain.prune_ratio(layers, num_removable - index * layers)}
        run = runs.run(params | ratio | start, snapshot=snapshot)
        folder = chain.network(run, snapshot)
        architecture = saved_architecture(folder)
        content = json.loads(runs.read(run, "reports/metrics.json", snapshot.baseline))
        dense, rebuilt, tuned = (flat(content[name]) for name in ("dense", "reconstructed", "finetuned"))
        left, removed = len(architecture.kept), architecture.removed[-layers:]
        if not rows:
            rows.append({"round": 0, "experiment": run, "removed": "", "layers_left": left + len(removed)} | dense)
        row = {"round": index + 1, "experiment": run, "removed": " ".join(removed), "layers_left": left}
        rows.append(row | tuned | {f"before_tuning.{key}": value for key, value in rebuilt.items()})
        start = chain.start_from(folder, model, snapshot, train=False)
    return rows


def main(params: Sequence[str], rounds: int, layers: int) -> None:
    """Run a chain for every point of a grid, and write the page and the table.

    Raises:
        SGLPError: one sentence on what is wrong.
    """
    snapshot = Snapshot.take()
    if rounds < 1 or layers < 1:
        raise RunError(f"--rounds {rounds} --layers {layers} is wrong: both must be at least 1")
    points = chain.parse_points(params, snapshot, "--layers is the number of layers to remove in each round")
    contents = [chain.files(point, snapshot) for point in points]
    for content, workload in contents:
        if workload["layers"] is not None:
            raise RunError(
                f"models/{content['model']}.yaml: layers={workload['layers']} are names in the dense network, which "
                "are different after a round: set it to null"
            )
    model, *others = dict.fromkeys(content["model"] for content, _ in contents)
    if others:
        raise RunError(f"model={','.join([model, *others])} is too much for one page: choose one model")
    with alone():
        chains = {chain.label(point, points, snapshot): run_chain(point, snapshot, rounds, layers) for point in points}
    options = ["--rounds", str(rounds), "--layers", str(layers)]
    command = shlex.join(["python", "-m", "experiments.rounds", *options, *params])
    rows = [{"chain": name} | row for name, rows in chains.items() for row in rows]
    write("rounds", page(chains, model, command), *chain.csv_table(rows))


def page(chains: dict[str, list[dict[str, Any]]], model: str, command: str) -> Page:
    """Return the page of some chains, given by the rows of their CSV tables."""
    dense = next(iter(chains.values()))[0]
    quality = quality_of(dense)
    cost, cost_label = cost_of(dense)
    cells, outcomes = [], []
    for name, rows in chains.items():
        for row in rows:
            values = [row.get(key) for key in (f"before_tuning.{quality.key}", quality.key)]
            cells.append([name, str(row["round"]), row["removed"].replace(" ", ", "), str(row["layers_left"])])
            cells[-1] += [amount(row[cost]), amount(row["params"])]
            cells[-1] += ["" if value is None else number(quality, value) for value in values]
        first, last = rows[0], rows[-1]
        outcomes.append(
            f"{name}: {first['layers_left'] - last['layers_left']} of {first['layers_left']} layers removed after "
            f"round {last['round']}, {100 * (1 - last[cost] / first[cost]):.1f} % fewer MACs, {quality.label} "
            f"{number(quality, first[quality.key])} → {number(quality, last[quality.key])}"
        )
    columns = ["chain", "round", "removed layers", "layers left", cost_label, "parameters", "before tuning"]
    curves: dict[str, Sequence[tuple[float, float]]]
    curves = {name: [(row[cost], row[quality.key]) for row in rows] for name, rows in chains.items()}
    return Page(
        title=f"Pruning in rounds: {model}",
        outcome=f"{'; '.join(outcomes)}.",
        table=Table([*columns, quality.label], cells),
        words=("chain", "removed layers"),
        figure=draw(curves, (cost_label, quality.label), ("dense network", dense[quality.key]), quality.share),
        notes=[NOTE],
        command=command,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prune in rounds, with fine-tuning in each round.")
    parser.add_argument("--rounds", type=int, default=3, help="the number of rounds (default: 3)")
    parser.add_argument("--layers", type=int, default=1, help="layers to remove in each round (default: 1)")
    chain.run_program("rounds", main, parser)
