"""Scoring combinations of layers against the straightforward way, which makes each combination's network anew."""

from collections.abc import Callable, Sequence
from itertools import combinations, islice

import torch
import torch.nn.functional as F

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.scoring.criteria.gradnorm import GradNorm
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.scoring.joint import search_jointly
from sglp.surgery.batchnorm import batch_statistics
from sglp.surgery.random_weights import init_seed

TITLE = "Scoring"
ROUNDS = 5
FACTORY = "sglp.networks.cifar_resnet:resnet"


def measure(small: bool) -> list[Row]:
    """ResNet-56, batches of 64, three segments: the paper's criterion, and the loss in the default search."""
    depth, side, count, rounds = (20, 8, 2, 1) if small else (56, 32, 8, ROUNDS)
    torch.manual_seed(0)
    network = sglp.build(FACTORY, {"depth": depth}, seed=1).eval()
    batch = torch.randn(64, 3, side, side), torch.randint(0, 10, (64,))
    layers = sglp.find_layers(network, batch[0][:1])
    third = len(layers) // 3
    segments = [(0, third), (third + 1, 2 * third), (2 * third + 1, len(layers) - 1)]
    case = (network, layers, segments, batch)
    what = f"ResNet-{depth}, batches of 64, {side}x{side}"
    return [_gradnorm(case, depth, count, rounds, what), _loss(case, rounds, what)]


def _gradnorm(case, depth: int, count: int, rounds: int, what: str) -> Row:
    """The first combinations of every segment."""
    network, layers, segments, batch = case
    asked = [one for segment in segments for one in islice(_combinations(layers, segment), count)]
    weights, random = network.state_dict(), sglp.build(FACTORY, {"depth": depth}, seed=init_seed(0)).state_dict()
    prefixes = [tuple(f"{path}." for path in layer.modules) for layer in layers]
    criterion = GradNorm(network, layers, [batch], seed=0)

    def straightforward() -> list[float]:
        scores = []
        for kept, _ in asked:
            trained = tuple(prefix for i in kept for prefix in prefixes[i])
            mixed = {name: (weights if name.startswith(trained) else random)[name] for name in random}
            one = sglp.build(FACTORY, {"depth": depth}, seed=0)
            one.load_state_dict(mixed)
            F.cross_entropy(one.train()(batch[0]), batch[1]).backward()
            scores.append(torch.stack([p.grad.norm() ** 2 for p in one.parameters()]).sum().sqrt().item())
        return scores

    def ours() -> list[float]:
        return [criterion(kept, gone) for kept, gone in asked]

    _same(ours(), straightforward(), "GradNorm")
    work = f"GradNorm of {len(asked)} combinations, {what}"
    other = "for each, a network is built, weights are loaded; forward, backward, norm"
    return Row(work, other, in_turn(ours, straightforward, rounds), 1.2)


def _loss(case, rounds: int, what: str) -> Row:
    """All that the default search asks when half of the layers go."""
    network, layers, segments, batch = case
    removable, goes = [layer.removable for layer in layers], len(layers) // 2
    names = [layer.name for layer in layers]

    def found(ask: Callable[[list[int]], float]) -> tuple[list[int], dict[int, float]]:
        return search_jointly(segments, removable, goes, lambda number, gone: ask(gone), len(layers) ** 2)

    def straightforward(gone: Sequence[int]) -> float:
        plan = sglp.Plan([n for i, n in enumerate(names) if i not in gone], [names[i] for i in gone])
        pruned = sglp.prune(network, plan)
        with torch.no_grad(), batch_statistics(pruned):
            return -F.cross_entropy(pruned(batch[0]), batch[1]).item()

    def ours() -> tuple[list[int], dict[int, float]]:
        criterion = _FittedAsLoss(network, layers, [batch])
        return found(lambda gone: criterion((), gone))

    own, theirs = ours(), found(straightforward)
    if own[0] != theirs[0]:
        raise AssertionError("other layers go than by the straightforward way")
    _same(list(own[1].values()), list(theirs[1].values()), "the loss")
    work = f"loss with the batch's statistics, {goes} layers go by the default search, {what}"
    return Row(
        work, "for each question, the network is pruned; forward", in_turn(ours, lambda: found(straightforward), rounds)
    )


class _FittedAsLoss(CalibrationLoss):
    """The default criterion without its scale, whose fit both ways would share."""

    def _losses(self, states: list[bool]) -> list[float]:
        with batch_statistics(self.network):
            return super()._losses(states)


def _combinations(layers: Sequence, segment: tuple[int, int]):
    """Half of what can go stays: pairs (kept, gone)."""
    inside = range(segment[0], segment[1] + 1)
    free = [i for i in inside if layers[i].removable]
    for chosen in combinations(free, len(free) // 2):
        gone = [i for i in free if i not in chosen]
        yield [i for i in inside if i not in gone], gone


def _same(own: list[float], theirs: list[float], what: str) -> None:
    torch.testing.assert_close(torch.tensor(own), torch.tensor(theirs), rtol=1e-5, atol=1e-7, msg=f"{what} differs")
