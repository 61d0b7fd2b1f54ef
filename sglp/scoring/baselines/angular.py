"""Angular distance: the run of layers goes whose input and output are closest.

The distance of a run is the mean of arccos(cosine) / pi of what enters its first layer and what leaves its last one: of
the last token's states where the network reads tokens, else of a sample's whole activation. Where no r layers in a row
can go, as in a CNN between whose stages the shape changes, as few runs as possible go, and of those the ones whose
distances have the smallest sum. A row of scores.csv is what would stay without the best runs that begin at one layer;
the score is minus their distance.

Source: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887), for one run at the last
token; several runs are of this project.
Cost: forward `B`, backward `0`.
Use: with language models of which many layers are to go, as it takes neighbours: what follows sees one jump. Of one or
two layers it says about what `block_influence` does. The last token must be no padding. In a CNN few runs mean whole
stages but for their first block, which is hard on a network whose stages are short.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.activations import BatchAxis
from sglp.batches import at_least_one, inputs_of, size_of, to_device
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.running import call, device_of, first_tensor, watched
from sglp.scores import SetScore
from sglp.scoring.combinations import best_plan
from sglp.scoring.ranking import check_keep

Removal = tuple[int, float, tuple[int, ...]]  # number of runs, the sum of their distances, their layers


def angular(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[SetScore]]:
    """Remove the run of layers of the smallest angular distance, or as few runs as possible.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: there is no batch, or a distance is not finite.
    """
    check_keep(layers, keep)
    ways = best_removals(distances(network, layers, batches), len(layers), len(layers) - keep)
    best, rows = min(ways), []
    for way in ways:
        _, distance, gone = way
        kept = tuple(i for i in range(len(layers)) if i not in gone)
        rows.append(SetScore(0, kept, -distance, "angular", way is best))
    return best_plan(layers, rows), rows


def best_removals(distance: Mapping[tuple[int, int], float], count: int, goes: int) -> list[Removal]:
    """The best way to take out layers for every layer that can be the first of them, all with as few runs as possible.

    Args:
        distance: of every run of layers that can go, by its (first, last).
        count: number of layers.
        goes: how many of them go; there are as many that can.
    """
    nothing: Removal = (0, 0.0, ())
    # By a layer and how many go: the best way of which it is the first to go, and the best from it on.
    starting: list[list[Removal | None]] = [[None] * (goes + 1) for _ in range(count)]
    following: list[list[Removal | None]] = [[nothing, *[None] * goes] for _ in range(count + 1)]
    for first in reversed(range(count)):
        for some in range(1, goes + 1):
            ways = []
            for last in range(first, first + some):
                if (first, last) not in distance:
                    break
                rest = following[last + 1][first + some - last - 1]
                if rest is not None:
                    runs, further, gone = rest
                    ways.append((1 + runs, distance[first, last] + further, (*range(first, last + 1), *gone)))
            starting[first][some] = min(ways, default=None)
            following[first][some] = min((*ways, *filter(None, [following[first + 1][some]])), default=None)
    ways = [of[goes] for of in starting if of[goes] is not None] or [nothing]
    fewest = min(ways)[0]
    return [way for way in ways if way[0] == fewest]


def distances(network: nn.Module, layers: Sequence[Layer], batches: Iterable) -> dict[tuple[int, int], float]:
    """The mean angular distance of every run of layers that can go, by its (first, last), in 0..1."""
    device, axes, batches = device_of(network), BatchAxis(network, layers), list(at_least_one(batches))
    means = _distances(network, layers, batches, axes)
    if axes.was_wrong(to_device(inputs_of(batches[0]), device)):
        means = _distances(network, layers, batches, axes)
    for (first, last), mean in means.items():
        if not math.isfinite(mean):
            raise ScoringError(f"the angular distance of layers {first} to {last} is {mean}: it must be finite")
    return means


def _distances(network: nn.Module, layers: Sequence[Layer], batches: Iterable, axes: BatchAxis) -> dict:
    sums: dict[tuple[int, int], Tensor] = {}
    entering: dict[int, Tensor] = {}  # what came in to the layers that ran in a row
    handles, samples, size, reads_tokens = [], 0, 0, False

    def before(i: int, module, args, kwargs) -> None:
        state = _state(axes.samples_first(i, first_tensor(args or kwargs), size), reads_tokens)
        if i - 1 not in entering or entering[i - 1].shape != state.shape:
            entering.clear()  # a layer that stays is in between, or something that changes the shape
        entering[i] = state

    def after(i: int, module, args, output) -> None:
        leaving = _state(axes.samples_first(i, first_tensor(output), size), reads_tokens)
        for first, state in entering.items():
            cosines = F.cosine_similarity(state.to(leaving.device), leaving, dim=-1).clamp(-1, 1)
            sums[first, i] = sums.get((first, i), 0) + (torch.arccos(cosines) / math.pi).sum()

    for i, layer in enumerate(layers):
        if layer.removable:
            first, last = (network.get_submodule(layer.modules[end]) for end in (0, -1))
            handles.append(first.register_forward_pre_hook(partial(before, i), with_kwargs=True))
            handles.append(last.register_forward_hook(partial(after, i)))
    device = device_of(network)
    with watched(network, handles):
        for batch in batches:
            inputs = to_device(inputs_of(batch), device)
            reads_tokens, size = not first_tensor(inputs).is_floating_point(), size_of(inputs)
            call(network, inputs)
            samples += size
    return {run: float(total) / samples for run, total in sums.items()}


def _state(activation: Tensor, reads_tokens: bool) -> Tensor:
    """[samples, values] in float64: of the last token where there are tokens. A copy: a layer may work in place."""
    state = activation[:, -1] if reads_tokens and activation.ndim == 3 else activation.flatten(1)
    return state.to(torch.float64, copy=True)
