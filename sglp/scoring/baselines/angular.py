"""Angular distance: remove the run of consecutive layers whose input and output are most similar.

The distance of a run is the mean of arccos(cosine) / pi between the input of its first layer and the output of its last
layer: of the last token's states, padding aside, if the network reads tokens, otherwise of a sample's whole activation.
Where no r consecutive layers can be removed, as in a CNN whose shapes change between stages, the fewest possible runs
are removed, and among those the runs with the smallest sum of distances. A row of scores.csv has the layers that would
be kept if the best runs that begin at one layer were removed; the score is minus their distance.

Source: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887), for one run at the last
token; several runs are an extension of this project.
Cost: forward `B`, backward `0`.
Use: with language models that are to lose many layers: the removed layers are neighbours, so that the rest of the
network sees a single jump. For one or two layers it mostly agrees with `block_influence`. In a CNN the fewest
runs are whole stages except for their first block, which is harmful if stages are short.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.activations import BatchAxis, pooled
from sglp.batches import at_least_one, padding_mask
from sglp.cutting import size_of
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.observing import observe_after
from sglp.plan import Plan
from sglp.running import call, first_tensor, hooked_eval, inputs_for
from sglp.scores import SetScore
from sglp.scoring.combinations import best_plan
from sglp.scoring.ranking import check_keep

Run = tuple[int, int]  # first and last layer
Removal = tuple[int, float, tuple[int, ...]]  # number of runs, the sum of their distances, their layers


def angular(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[SetScore]]:
    """Remove the run of layers with the smallest angular distance, or as few runs as possible.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: `batches` is empty, or a distance is not finite.
    """
    check_keep(layers, keep)
    removals = best_removals(distances(network, layers, batches), len(layers), len(layers) - keep)
    best = min(removals)
    rows = []
    for removal in removals:
        _, distance, removed = removal
        kept = tuple(i for i in range(len(layers)) if i not in removed)
        rows.append(SetScore(0, kept, -distance, "angular", removal is best))
    return best_plan(layers, rows), rows


def best_removals(distance: Mapping[Run, float], num_layers: int, num_removed: int) -> list[Removal]:
    """Find, for each layer, the best removal in which it is the first removed layer; all have as few runs as possible.

    Args:
        distance: distance of each run of removable layers.
        num_layers: number of layers.
        num_removed: number of layers to remove, at most the number of removable layers.
    """
    nothing: Removal = (0, 0.0, ())
    # By layer and number of removed layers: the best removal that begins at the layer, and the best from it onwards.
    beginning: list[list[Removal | None]] = [[None] * (num_removed + 1) for _ in range(num_layers)]
    onwards: list[list[Removal | None]] = [[nothing, *[None] * num_removed] for _ in range(num_layers + 1)]
    for first in reversed(range(num_layers)):
        for size in range(1, num_removed + 1):
            options: list[Removal] = []
            for last in range(first, first + size):
                if (first, last) not in distance:
                    break
                rest = onwards[last + 1][first + size - last - 1]
                if rest is not None:
                    runs, rest_distance, removed = rest
                    options.append(
                        (1 + runs, distance[first, last] + rest_distance, (*range(first, last + 1), *removed))
                    )
            beginning[first][size] = min(options, default=None)
            onwards[first][size] = min((*options, *filter(None, [onwards[first + 1][size]])), default=None)
    removals = [removal for by_size in beginning if (removal := by_size[num_removed]) is not None] or [nothing]
    fewest_runs = min(removals)[0]
    return [removal for removal in removals if removal[0] == fewest_runs]


def distances(network: nn.Module, layers: Sequence[Layer], batches: Iterable) -> dict[Run, float]:
    """Return the mean angular distance, from 0 to 1, of each run of removable layers."""
    axis = BatchAxis(network, layers)
    batches = list(at_least_one(batches))
    means = _distances(network, layers, batches, axis)
    if axis.was_wrong(inputs_for(network, batches[0])):
        means = _distances(network, layers, batches, axis)
    for (first, last), mean in means.items():
        if not math.isfinite(mean):
            raise ScoringError(f"the angular distance of layers {first} to {last} is {mean}: it must be finite")
    return means


def _distances(network: nn.Module, layers: Sequence[Layer], batches: Iterable, axis: BatchAxis) -> dict[Run, float]:
    sums: dict[Run, Tensor] = {}
    run_inputs: dict[int, Tensor] = {}  # inputs of the consecutive layers that have run so far
    handles = []
    samples, size, reads_tokens = 0, 0, False
    mask: Tensor | None = None

    def store_input(i: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        state = _state(axis.samples_first(i, first_tensor(args or kwargs), size), reads_tokens, mask)
        if i - 1 not in run_inputs or run_inputs[i - 1].shape != state.shape:
            run_inputs.clear()  # a layer that can't be removed, or a change of shape, ends the run
        run_inputs[i] = state

    def add_distances(i: int, output: Any) -> None:
        output_state = _state(axis.samples_first(i, first_tensor(output), size), reads_tokens, mask)
        for first, state in run_inputs.items():
            cosines = F.cosine_similarity(state.to(output_state.device), output_state, dim=-1).clamp(-1, 1)
            sums[first, i] = sums.get((first, i), 0) + (torch.arccos(cosines) / math.pi).sum()

    for i, layer in enumerate(layers):
        if layer.removable:
            first = network.get_submodule(layer.modules[0])
            handles.append(first.register_forward_pre_hook(partial(store_input, i), with_kwargs=True))
            handles += observe_after(network, layer.name, partial(add_distances, i))
    with hooked_eval(network, handles):
        for batch in batches:
            inputs = inputs_for(network, batch)
            mask = padding_mask(inputs)
            reads_tokens = mask is not None or not first_tensor(inputs).is_floating_point()
            size = size_of(inputs)
            call(network, inputs)
            samples += size
    return {run: float(total) / samples for run, total in sums.items()}


def _state(activation: Tensor, reads_tokens: bool, mask: Tensor | None) -> Tensor:
    """Copy states [samples, values] as float64, of the last token if there are tokens; layers may work in place."""
    state = pooled(activation, "last" if reads_tokens and activation.ndim == 3 else "flatten", mask)
    return state.to(torch.float64, copy=True)
