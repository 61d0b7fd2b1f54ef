"""Cosines between the inputs of layers."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.activations import tokens_first
from sglp.batches import at_least_one, padding_mask
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.padding import mask_of_rows, tokens_of
from sglp.running import call, first_tensor, hooked_eval, inputs_for


def input_similarity(network: nn.Module, layers: Sequence[Layer], batches: Iterable) -> np.ndarray:
    """Return the mean cosine between the inputs of each pair of layers.

    The mean is over the states of all tokens [samples, tokens, channels] that are not padding, or else over the whole
    activations of all samples. The inputs of all layers for one batch are held at a time.

    Returns:
        [layers, layers] float64, with ones on the diagonal. 0 for two layers whose inputs never have the same shape.

    Raises:
        ScoringError: there is no batch, or a value is not finite.
    """
    sums = np.zeros((len(layers), len(layers)))
    counts = np.zeros_like(sums)
    states: dict[int, tuple[Tensor, float]] = {}  # unit vectors and their number, of the layers that have run so far
    mask: Tensor | None = None
    batches = list(at_least_one(batches))
    transposed = tokens_first(network, layers, batches)

    def add(i: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        units, count = _units(first_tensor(args or kwargs), mask, i in transposed)
        for j, (others, _) in states.items():
            if others.shape == units.shape:
                total = float((units * others.to(units.device)).sum(dtype=torch.float64))
                sums[[i, j], [j, i]] += total
                counts[[i, j], [j, i]] += count
        states[i] = units, count

    handles = [
        network.get_submodule(layer.modules[0]).register_forward_pre_hook(partial(add, i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    with hooked_eval(network, handles):
        for batch in batches:
            inputs = inputs_for(network, batch)
            mask = padding_mask(inputs)
            call(network, inputs)
            states.clear()
    cosines = sums / np.maximum(counts, 1)
    for i, j in zip(*np.nonzero(~np.isfinite(cosines)), strict=True):
        raise ScoringError(
            f"the cosine between the inputs of {layers[i].name} and {layers[j].name} is {cosines[i, j]}: it must be "
            "finite"
        )
    np.fill_diagonal(cosines, 1)
    return cosines


def _units(activation: Tensor, mask: Tensor | None, transposed: bool) -> tuple[Tensor, float]:
    """Return unit vectors of the tokens or samples, zeros for padding, and the number of vectors that count."""
    if (found := tokens_of(activation, mask, transposed)) is not None:
        states, mask = found
    else:
        states = activation if activation.ndim == 3 else activation.flatten(1)
        mask = mask_of_rows(activation, mask) if activation.ndim == 2 else None
    units = F.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1, eps=1e-12)
    if mask is None:
        return units, units[..., 0].numel()
    return units.masked_fill(~mask[..., None], 0), float(mask.sum())
