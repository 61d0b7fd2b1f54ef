"""Write docs/deep.md: how cost grows with depth. ``python -m benchmarks.deep``.

The networks are CIFAR ResNets of 27 to 600 blocks on the digits. Every depth runs in a separate process, so that its
peak memory is measured separately.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import sglp
from sglp.files import new_file
from sglp.layer import Layer
from sglp.running import count_passes
from sglp.segmentation import segmentation_table
from sglp.tasks.digits import Digits
from sglp.tasks.trainer.channels_last import channels_last

T = TypeVar("T")
PAGE = Path("docs/deep.md")
DEPTHS = (56, 110, 200, 560, 1202)
BATCH = 64
EPOCHS = 8
MAX_K = 40  # largest number of segments; at most a third of the layers
EVALUATIONS = 1000  # score.max_evaluations
COMBINATIONS = 40  # number of combinations that measure the stability of scores

Combination = tuple[list[int], list[int]]  # indices of the kept and of the removed layers


def measure(depth: int) -> dict:
    """Train a network of this depth briefly, remove half of its blocks, and measure each step."""
    batches = _digits(train=True)
    held_out = _digits(train=False)
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": depth, "in_channels": 1}, seed=0)
    for path, module in network.named_modules():
        # Every block starts as its shortcut (Goyal et al. 2017, section 5.1), so the deepest trains in minutes.
        if path.endswith(".bn2") and isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    _train(network, batches)
    timer = _Timer()
    layers = timer.run("find_layers", lambda: sglp.find_layers(network, batches[0][0][:1]))
    similarity = timer.run("CKA", lambda: sglp.cka_matrix(sglp.gram_matrices(network, layers, batches[:4])))
    table = timer.run("segmentation", lambda: segmentation_table(similarity, max_k=MAX_K))
    segments = table.segments(min(MAX_K, len(layers) // 3))
    budget = sglp.allocate_budget(segments, [layer.removable for layer in layers], prune_ratio=0.5)
    problem = (network, layers, segments, budget, batches[:1])
    with count_passes() as passes:
        rows = timer.run("scoring", lambda: sglp.score_combinations(*problem, max_evaluations=EVALUATIONS))
    pruned = timer.run("prune", lambda: sglp.prune(network, sglp.best_plan(layers, rows)))
    with tempfile.TemporaryDirectory() as folder:
        timer.run("save", lambda: sglp.save(pruned, Path(folder) / "pruned"))
        loaded = timer.run("load", lambda: sglp.load(Path(folder) / "pruned"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with torch.no_grad():
        if not torch.equal(loaded(batches[0][0]), pruned.eval()(batches[0][0])):
            raise AssertionError("the loaded network gives other outputs than the saved one")
    quality = {"dense": _accuracy(network, held_out)}
    sglp.recalibrate(pruned, batches)
    quality["half removed"] = _accuracy(pruned, held_out)
    singles = _single_removals(layers, segments)
    halves = _random_halves(layers)
    return {
        "depth": depth,
        "layers": len(layers),
        "quality": quality,
        "seconds": timer.seconds,
        "passes": passes.forward,
        "gigabytes": memory,
        "stable": {
            "fitted_loss, other batches": _stability("fitted_loss", network, layers, singles, batches, (0, 0, 0)),
            "gradnorm, other batches": _stability("gradnorm", network, layers, singles, batches, (0, 0, 0)),
            "gradnorm, other seeds": _stability("gradnorm", network, layers, singles, batches[:1] * 3, (0, 1, 2)),
            "fitted_loss on halves, other batches": _stability(
                "fitted_loss", network, layers, halves, batches, (0, 0, 0)
            ),
        },
    }


def _single_removals(layers: list[Layer], segments: list[tuple[int, int]]) -> list[Combination]:
    """Remove a single layer from its segment, for layers spread over the network."""
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    removed = sorted({removable[i] for i in np.linspace(0, len(removable) - 1, COMBINATIONS).astype(int)})
    around = [next(range(first, last + 1) for first, last in segments if first <= i <= last) for i in removed]
    return [([j for j in segment if j != i], [i]) for i, segment in zip(removed, around, strict=True)]


def _random_halves(layers: list[Layer]) -> list[Combination]:
    """Remove random halves of the removable layers from the whole network."""
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    rng = np.random.default_rng(0)
    halves = [sorted(rng.choice(removable, len(removable) // 2, replace=False).tolist()) for _ in range(COMBINATIONS)]
    return [([i for i in range(len(layers)) if i not in removed], removed) for removed in halves]


class _Timer:
    """The seconds that each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, step: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[step] = time.perf_counter() - start
        return result


def _digits(train: bool) -> list[tuple[Tensor, Tensor]]:
    """Return the digits in batches of equal size."""
    split = Digits(train)
    images = torch.tensor(split.images / 120 - 1, dtype=torch.float32)[:, None]
    targets = torch.tensor(split.targets)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[i], targets[i]) for i in order.split(BATCH) if len(i) == BATCH]


def _train(network: nn.Module, batches: list) -> None:
    steps = EPOCHS * len(batches)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    network.train()
    with channels_last(network, batches[0][0][:2]):
        for step in range(steps):
            inputs, targets = batches[step % len(batches)]
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def _accuracy(network: nn.Module, batches: list) -> float:
    with torch.no_grad():
        correct = [(network(inputs).argmax(1) == targets).float().mean() for inputs, targets in batches]
    return float(torch.stack(correct).mean())


def _stability(
    name: str,
    network: nn.Module,
    layers: list[Layer],
    combinations: list[Combination],
    batches: list,
    seeds: tuple[int, ...],
) -> list[float]:
    """Return the rank correlations of a criterion's scores between the first batch and seed and each other pair."""
    scores = []
    for seed, batch in zip(seeds, batches, strict=False):
        criterion = sglp.find_criterion(name)(network, layers, [batch], seed=seed)
        scores.append([criterion(kept, removed, []) for kept, removed in combinations])
    if not np.isfinite(scores).all():
        raise AssertionError(f"some scores of {name} are not finite")
    return [float(spearmanr(scores[0], other).statistic) for other in scores[1:]]


def _page(results: list[dict]) -> str:
    """Format the page: a row per step, a column per depth, and the growth between the two deepest."""
    header = ["", *(f"depth {result['depth']}" for result in results), "growth"]
    lines = [["layers", *(f"{result['layers']}" for result in results), ""]]
    for step in results[0]["seconds"]:
        values = [result["seconds"][step] for result in results]
        lines.append([f"{step}, seconds", *(f"{value:.2f}" for value in values), _growth(results, values)])
    totals = [sum(result["seconds"].values()) for result in results]
    lines.append(["all steps, seconds", *(f"{value:.2f}" for value in totals), _growth(results, totals)])
    lines.append(["scoring, forward passes", *(f"{result['passes']}" for result in results), ""])
    per_pass = [result["seconds"]["scoring"] / result["passes"] for result in results]
    lines.append(["scoring, seconds per pass", *(f"{value:.3f}" for value in per_pass), _growth(results, per_pass)])
    memory = [result["gigabytes"] for result in results]
    lines.append(["peak memory, GiB", *(f"{value:.2f}" for value in memory), _growth(results, memory)])
    for name in results[0]["quality"]:
        lines.append([f"accuracy, {name}", *(f"{100 * result['quality'][name]:.1f} %" for result in results), ""])
    for name in results[0]["stable"]:
        lines.append([name, *(" ".join(f"{rho:.2f}" for rho in result["stable"][name]) for result in results), ""])
    table = "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] + ["--:"] * (len(header) - 1), *lines))
    return f"""<!-- Written by `python -m benchmarks.deep`. -->
# Deep networks

CIFAR ResNets on the digits (8x8 pixels) were trained for {EPOCHS} epochs in batches of {BATCH} samples. CKA uses four
batches. Segmentation finds the best segments for every number up to {MAX_K}. The default search with
`score.max_evaluations: {EVALUATIONS}` removes half of the removable blocks. Measured on {os.cpu_count()} cores
({platform.machine()}), torch {torch.__version__} with {torch.get_num_threads()} threads. Growth is the exponent p of
layers^p between the two deepest networks. Accuracy is on the test images of the digits, without fine-tuning after the
removal, but with new batch-norm statistics.

The last rows show the stability of scores: Spearman's correlation of a criterion's scores on one batch, or with one
seed, with those on two other batches, or with two other seeds. The scores are those of {COMBINATIONS} single layers
spread over the network, each removed alone, or of {COMBINATIONS} random halves of the removable layers.

{table}
"""


def _growth(results: list[dict], values: list[float]) -> str:
    if len(results) < 2:
        return ""
    before, after = [result["layers"] for result in results[-2:]]
    return f"{math.log(values[-1] / values[-2]) / math.log(after / before):.2f}"


def main() -> None:
    """Measure every depth in a separate process, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep", description=__doc__)
    parser.add_argument("depths", nargs="*", type=int, default=DEPTHS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.depths[0])))
        return
    results = []
    for depth in arguments.depths:
        command = [sys.executable, "-m", "benchmarks.deep", "--one", str(depth)]
        completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(completed.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    with new_file(PAGE) as new:
        new.write_text(_page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
