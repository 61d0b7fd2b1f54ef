"""Scoring combinations of layers, against building the network of each combination separately."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.layer import Layer
from sglp.scoring.criteria.gradnorm import GradNorm
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.scoring.joint import search_jointly
from sglp.surgery.batchnorm import batch_statistics
from sglp.surgery.random_weights import init_seed

TITLE = "Scoring"
ROUNDS = 5
FACTORY = "sglp.networks.cifar_resnet:resnet"


class _Problem(NamedTuple):
    network: nn.Module
    layers: list[Layer]
    segments: list[tuple[int, int]]
    batch: tuple[Tensor, Tensor]


def measure(small: bool) -> list[Row]:
    """Time the paper's criterion, and the loss in the default search, on a ResNet-56 with three segments."""
    depth, side, count, rounds = (20, 8, 2, 1) if small else (56, 32, 8, ROUNDS)
    torch.manual_seed(0)
    network = sglp.build(FACTORY, {"depth": depth}, seed=1).eval()
    batch = torch.randn(64, 3, side, side), torch.randint(0, 10, (64,))
    layers = sglp.find_layers(network, batch[0][:1])
    third = len(layers) // 3
    segments = [(0, third), (third + 1, 2 * third), (2 * third + 1, len(layers) - 1)]
    problem = _Problem(network, layers, segments, batch)
    setup = f"ResNet-{depth}, batches of 64, {side}x{side}"
    return [_gradnorm(problem, depth, count, rounds, setup), _loss(problem, rounds, setup)]


def _gradnorm(problem: _Problem, depth: int, count: int, rounds: int, setup: str) -> Row:
    """Score the first combinations of every segment."""
    network, layers, segments, batch = problem
    pairs = [pair for segment in segments for pair in islice(_combinations(layers, segment), count)]
    weights = network.state_dict()
    random = sglp.build(FACTORY, {"depth": depth}, seed=init_seed(0)).state_dict()
    prefixes = [tuple(f"{path}." for path in layer.modules) for layer in layers]
    criterion = GradNorm(network, layers, [batch], seed=0)

    def straightforward() -> list[float]:
        scores = []
        for kept, _ in pairs:
            trained = tuple(prefix for i in kept for prefix in prefixes[i])
            mixed = {name: (weights if name.startswith(trained) else random)[name] for name in random}
            partly_trained = sglp.build(FACTORY, {"depth": depth}, seed=0)
            partly_trained.load_state_dict(mixed)
            F.cross_entropy(partly_trained.train()(batch[0]), batch[1]).backward()
            gradients = [p.grad for p in partly_trained.parameters() if p.grad is not None]
            scores.append(torch.stack([gradient.norm() ** 2 for gradient in gradients]).sum().sqrt().item())
        return scores

    def ours() -> list[float]:
        return [criterion(kept, removed) for kept, removed in pairs]

    _same(ours(), straightforward(), "GradNorm")
    work = f"GradNorm of {len(pairs)} combinations, {setup}"
    other = "for each combination: build a network, load weights, forward, backward, norm"
    return Row(work, other, in_turn(ours, straightforward, rounds), 1.2)


def _loss(problem: _Problem, rounds: int, setup: str) -> Row:
    """Run the default search that removes half of the layers."""
    network, layers, segments, batch = problem
    removable = [layer.removable for layer in layers]
    num_removed = len(layers) // 2
    names = [layer.name for layer in layers]

    def search(score: Callable[[list[int]], float]) -> tuple[list[int], dict[int, float]]:
        return search_jointly(segments, removable, num_removed, lambda _, removed: score(removed), len(layers) ** 2)

    def straightforward(removed: Sequence[int]) -> float:
        plan = sglp.Plan([n for i, n in enumerate(names) if i not in removed], [names[i] for i in removed])
        pruned = sglp.prune(network, plan)
        with torch.no_grad(), batch_statistics(pruned):
            return -F.cross_entropy(pruned(batch[0]), batch[1]).item()

    def ours() -> tuple[list[int], dict[int, float]]:
        criterion = _FittedAsLoss(network, layers, [batch])
        return search(lambda removed: criterion((), removed))

    own_removed, own_drops = ours()
    removed, drops = search(straightforward)
    if own_removed != removed:
        raise AssertionError("the two versions remove different layers")
    _same(list(own_drops.values()), list(drops.values()), "the loss")
    work = f"loss with batch statistics, default search removing {num_removed} layers, {setup}"
    other = "for each evaluation: prune the network, forward"
    return Row(work, other, in_turn(ours, lambda: search(straightforward), rounds))


class _FittedAsLoss(CalibrationLoss):
    """The default criterion without fitting the logit scale, which both versions would share."""

    def _losses(self, states: list[bool]) -> list[float]:
        with batch_statistics(self.network):
            return super()._losses(states)


def _combinations(layers: Sequence[Layer], segment: tuple[int, int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield pairs (kept, removed) that keep half of the segment's removable layers."""
    inside = range(segment[0], segment[1] + 1)
    removable = [i for i in inside if layers[i].removable]
    for chosen in combinations(removable, len(removable) // 2):
        removed = [i for i in removable if i not in chosen]
        yield [i for i in inside if i not in removed], removed


def _same(own: list[float], theirs: list[float], name: str) -> None:
    torch.testing.assert_close(torch.tensor(own), torch.tensor(theirs), rtol=1e-5, atol=1e-7, msg=f"{name} differs")
