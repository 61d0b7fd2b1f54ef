"""How cost grows with depth: CIFAR ResNets of 27 to 600 blocks on the digits. ``python -m benchmarks.deep``.

Every depth runs in a process of its own, so that peak memory is its own too. docs/deep.md is written when all are done.
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
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import sglp
from sglp.files import new_file
from sglp.running import count_passes
from sglp.segmentation import segmentation_table
from sglp.tasks.digits import Digits
from sglp.tasks.trainer.channels_last import channels_last

PAGE = Path("docs/deep.md")
DEPTHS = (56, 110, 200, 560, 1202)
BATCH = 64
EPOCHS = 8
K = 40  # segments are looked for up to so many; a third of the layers where they are few
EVALUATIONS = 1000  # score.max_evaluations
ASKED = 40  # combinations that the stability of scores is read off


def measure(depth: int) -> dict:
    """Train a network of this depth for a moment, take half of its blocks out, and say what each step took."""
    batches, held_out = _digits(train=True), _digits(train=False)
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": depth, "in_channels": 1}, seed=0)
    for block in (*network.layer1, *network.layer2, *network.layer3):
        # Every block begins as its shortcut (Goyal et al. 2017, section 5.1): so the deepest can be trained in minutes.
        nn.init.zeros_(block.bn2.weight)
    _train(network, batches)
    seconds = _Seconds()
    layers = seconds.of("find_layers", lambda: sglp.find_layers(network, batches[0][0][:1]))
    some = batches[:4]
    similarity = seconds.of("CKA", lambda: sglp.cka_matrix(sglp.gram_matrices(network, layers, some)))
    table = seconds.of("segmentation", lambda: segmentation_table(similarity, max_k=K))
    segments = table.segments(min(K, len(layers) // 3))
    budget = sglp.allocate_budget(segments, [layer.removable for layer in layers], prune_ratio=0.5)
    scoring = (network, layers, segments, budget, batches[:1])
    with count_passes() as passes:
        rows = seconds.of("scoring", lambda: sglp.score_combinations(*scoring, max_evaluations=EVALUATIONS))
    pruned = seconds.of("prune", lambda: sglp.prune(network, sglp.best_plan(layers, rows)))
    with tempfile.TemporaryDirectory() as folder:
        seconds.of("save", lambda: sglp.save(pruned, Path(folder) / "pruned"))
        loaded = seconds.of("load", lambda: sglp.load(Path(folder) / "pruned"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with torch.no_grad():
        if not torch.equal(loaded(batches[0][0]), pruned.eval()(batches[0][0])):
            raise AssertionError("the network that was loaded is not the one that was saved")
    quality = {"dense": _accuracy(network, held_out)}
    sglp.recalibrate(pruned, batches)
    quality["half of it"] = _accuracy(pruned, held_out)
    ones, halves = _ones(layers, segments), _halves(layers)
    return {
        "depth": depth,
        "layers": len(layers),
        "quality": quality,
        "seconds": seconds.taken,
        "passes": passes.forward,
        "gigabytes": memory,
        "stable": {
            "fitted_loss, other batches": _stable("fitted_loss", network, layers, ones, batches, (0, 0, 0)),
            "gradnorm, other batches": _stable("gradnorm", network, layers, ones, batches, (0, 0, 0)),
            "gradnorm, other seeds": _stable("gradnorm", network, layers, ones, batches[:1] * 3, (0, 1, 2)),
            "fitted_loss of halves, other batches": _stable("fitted_loss", network, layers, halves, batches, (0, 0, 0)),
        },
    }


def _ones(layers, segments) -> list[tuple[list[int], list[int]]]:
    """Of layers all over the network: one alone is gone, the rest of its segment stays."""
    free = [i for i, layer in enumerate(layers) if layer.removable]
    gone = sorted({free[i] for i in np.linspace(0, len(free) - 1, ASKED).astype(int)})
    around = [next(range(first, last + 1) for first, last in segments if first <= i <= last) for i in gone]
    return [([j for j in segment if j != i], [i]) for i, segment in zip(gone, around, strict=True)]


def _halves(layers) -> list[tuple[list[int], list[int]]]:
    """Random halves of what can go are gone from the whole network."""
    free, draw = [i for i, layer in enumerate(layers) if layer.removable], np.random.default_rng(0)
    gone = [sorted(draw.choice(free, len(free) // 2, replace=False).tolist()) for _ in range(ASKED)]
    return [([i for i in range(len(layers)) if i not in some], some) for some in gone]


class _Seconds:
    def __init__(self):
        self.taken: dict[str, float] = {}

    def of(self, step: str, work):
        start = time.perf_counter()
        result = work()
        self.taken[step] = time.perf_counter() - start
        return result


def _digits(train: bool) -> list:
    """Batches of the digits, as large as each other."""
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
        right = [(network(inputs).argmax(1) == targets).float().mean() for inputs, targets in batches]
    return float(torch.stack(right).mean())


def _stable(name: str, network, layers, combinations, batches: list, seeds: tuple[int, ...]) -> list[float]:
    """Rank correlations of a criterion's scores of combinations: of the first batch and seed with the others."""
    scores = []
    for seed, batch in zip(seeds, batches, strict=False):
        criterion = sglp.find_criterion(name)(network, layers, [batch], seed=seed)
        scores.append([criterion(kept, gone, []) for kept, gone in combinations])
    if not np.isfinite(scores).all():
        raise AssertionError(f"{name} gives scores that are not finite")
    return [float(spearmanr(scores[0], other).statistic) for other in scores[1:]]


def _page(found: list[dict]) -> str:
    """The page: a row a step, a column a depth, and how the step grows between the two deepest."""
    head = ["", *(f"depth {one['depth']}" for one in found), "growth"]
    lines = [["layers", *(f"{one['layers']}" for one in found), ""]]
    for step in found[0]["seconds"]:
        values = [one["seconds"][step] for one in found]
        lines.append([f"{step}, seconds", *(f"{value:.2f}" for value in values), _growth(found, values)])
    whole = [sum(one["seconds"].values()) for one in found]
    lines.append(["all of them, seconds", *(f"{value:.2f}" for value in whole), _growth(found, whole)])
    lines.append(["scoring, forward passes", *(f"{one['passes']}" for one in found), ""])
    each = [one["seconds"]["scoring"] / one["passes"] for one in found]
    lines.append(["scoring, seconds a pass", *(f"{value:.3f}" for value in each), _growth(found, each)])
    memory = [one["gigabytes"] for one in found]
    lines.append(["peak memory, GiB", *(f"{value:.2f}" for value in memory), _growth(found, memory)])
    for name in found[0]["quality"]:
        lines.append([f"accuracy, {name}", *(f"{100 * one['quality'][name]:.1f} %" for one in found), ""])
    for name in found[0]["stable"]:
        lines.append([name, *(" ".join(f"{rho:.2f}" for rho in one["stable"][name]) for one in found), ""])
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] + ["--:"] * (len(head) - 1), *lines))
    return f"""<!-- Written by `python -m benchmarks.deep`. -->
# Deep networks

CIFAR ResNets on the digits (8x8 pixels), trained for {EPOCHS} epochs; batches of {BATCH} samples, CKA over four of
them, every segmentation up to {K} segments, half of the removable blocks out by the default search with
`score.max_evaluations: {EVALUATIONS}`. On {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}
with {torch.get_num_threads()} threads. Growth is the exponent p of layers^p between the two deepest. Accuracy is on the
test images of the digits, without tuning after the removal, with batch norm's statistics taken anew.

The last rows are the stability of scores: Spearman's correlation of a criterion's scores on one batch, or of one seed,
with those on two others; of {ASKED} layers all over the network, each alone being gone, or of {ASKED} random halves.

{table}
"""


def _growth(found: list[dict], values: list[float]) -> str:
    if len(found) < 2:
        return ""
    (a, b), (x, y) = [one["layers"] for one in found[-2:]], values[-2:]
    return f"{math.log(y / x) / math.log(b / a):.2f}"


def main() -> None:
    """Measure every depth in a process of its own; write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep", description=__doc__)
    parser.add_argument("depths", nargs="*", type=int, default=DEPTHS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.depths[0])))
        return
    found = []
    for depth in arguments.depths:
        command = [sys.executable, "-m", "benchmarks.deep", "--one", str(depth)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    with new_file(PAGE) as new:
        new.write_text(_page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
