"""Block influence: remove the layers that rotate their input least.

BI = 1 - mean cosine between a layer's input and output; the layers with the smallest BI are removed. The cosine is
between the states of each token [samples, tokens, channels] that is not padding, or between the whole activations of a
sample.

Source: ShortGPT (arXiv 2403.03853).
Cost: forward `B`, backward `0`.
Use: as a first try for a transformer with residual connections: one pass, no labels. It measures how a layer changes
its own input, not how later layers respond: a small rotation can matter much, and a large one little. After a ReLU all
values are at least 0, and cosines lie close together.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.activations import tokens_first
from sglp.batches import at_least_one, padding_mask
from sglp.layer import Layer
from sglp.observing import observe_after
from sglp.padding import mask_of_rows, tokens_of
from sglp.plan import Plan
from sglp.running import call, first_tensor, hooked_eval, inputs_for
from sglp.scores import LayerScore
from sglp.scoring.ranking import check_keep, keep_best


def block_influence(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers with the smallest BI; a layer that can't be removed has score 0.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: `batches` is empty, or a score is not finite.
    """
    check_keep(layers, keep)
    return keep_best(layers, influences(network, layers, batches), keep, "block influence")


def influences(network: nn.Module, layers: Sequence[Layer], batches: Iterable) -> list[float]:
    """Return the block influence of each layer, or 0 for a layer that can't be removed."""
    sums = torch.zeros(len(layers), dtype=torch.float64)
    counts = [0] * len(layers)
    layer_inputs: dict[int, Tensor] = {}
    mask: Tensor | None = None
    batches = list(at_least_one(batches))
    transposed = tokens_first(network, layers, batches)
    handles = []
    for i, layer in enumerate(layers):
        if not layer.removable:
            continue

        def store_input(module: nn.Module, args: tuple, kwargs: dict, i: int = i) -> None:
            layer_inputs[i] = first_tensor(args if args else kwargs).clone()  # a layer may work in place

        def add_cosines(output: Any, i: int = i) -> None:
            cosines = _cosines(layer_inputs.pop(i), first_tensor(output), mask, i in transposed)
            sums[i] += cosines.sum().cpu()
            counts[i] += cosines.numel()

        first = network.get_submodule(layer.modules[0])
        handles.append(first.register_forward_pre_hook(store_input, with_kwargs=True))
        handles += observe_after(network, layer.name, add_cosines)
    with hooked_eval(network, handles):
        for batch in batches:
            inputs = inputs_for(network, batch)
            mask = padding_mask(inputs)
            call(network, inputs)
    return [1 - float(total) / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]


def _cosines(before: Tensor, after: Tensor, mask: Tensor | None, transposed: bool) -> Tensor:
    """Return one cosine per token that is not padding, or per sample if there are no tokens."""
    pair = [tokens_of(activation, mask, transposed) for activation in (before, after)]
    if None not in pair:
        before, after = (tokens[shown] for tokens, shown in filter(None, pair))
        return F.cosine_similarity(before.double(), after.double(), dim=-1)
    shown = mask_of_rows(before, mask) if before.ndim == 2 else None
    if before.ndim != 3:
        before, after = before.flatten(1), after.flatten(1)
    cosines = F.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosines if shown is None else cosines[shown]
