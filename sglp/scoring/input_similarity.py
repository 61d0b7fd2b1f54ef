"""Cosines between the inputs of layers."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.batches import at_least_one, inputs_of, padding_mask, to_device
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.running import call, device_of, first_tensor, hooked_eval


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

    def add(i: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        units, count = _units(first_tensor(args or kwargs), mask)
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
    device = device_of(network)
    with hooked_eval(network, handles):
        for batch in at_least_one(batches):
            inputs = to_device(inputs_of(batch), device)
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


def _units(activation: Tensor, mask: Tensor | None) -> tuple[Tensor, float]:
    """Return unit vectors of the tokens or samples, zeros for padding, and the number of vectors that count."""
    states = activation if activation.ndim == 3 else activation.flatten(1)
    units = F.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1, eps=1e-12)
    if mask is None or states.ndim != 3 or mask.shape != states.shape[:2]:
        return units, units[..., 0].numel()
    counts = mask != 0
    return units.masked_fill(~counts[..., None], 0), float(counts.sum())
