"""The last linear map of a layer, if the layer's output is affine in it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sglp.running import first_tensor

CLOSE = 1e-3  # tolerance relative to the largest value: float32 rounds the residual stream


def last_linear_map(modules: Sequence[nn.Module], run: Callable[[], Any]) -> nn.Module | None:
    """Find the linear map whose output is added to the layer's output as it is.

    The map is found by running the layer, not by names: where a change of the map's output changes the layer's output
    by the same amount, the layer is affine in the map's weight, and least squares has a closed form.

    Args:
        modules: the modules of the layer.
        run: runs the layer on a batch.

    Returns:
        An `nn.Linear` or a `Conv1D` of transformers, or None if there is no such map.
    """
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    candidates = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    handles = [
        m.register_forward_hook(lambda m, args, out: calls.setdefault(m, []).append((args[0].clone(), out.clone())))
        for m in candidates
    ]
    try:
        plain = first_tensor(run()).clone()
    finally:
        for handle in handles:
            handle.remove()
    # Blocks whose attention and feed-forward part are parallel have two: the wider map can fit more.
    widest_first = sorted(calls.items(), key=lambda item: -item[1][0][0].shape[-1])
    for candidate, seen in widest_first:
        if len(seen) == 1 and _is_linear(candidate, *seen[0]) and _is_added(candidate, seen[0][1].shape, plain, run):
            return candidate
    return None


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as [out, in]: a view, so that it can be changed in place."""
    weight: Tensor = module.get_parameter("weight").data
    return weight.T if is_conv1d(module) else weight


def is_conv1d(module: nn.Module) -> bool:
    """Recognise the linear map of GPT-2, which stores its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_linear(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Check that a module computes Wx + b: adapters and parametrizations may do more."""
    bias = getattr(module, "bias", None)
    expected = nn.functional.linear(given, weight_of(module), bias)
    return output.shape == expected.shape and _close(output, expected, expected)


def _is_added(candidate: nn.Module, shape: torch.Size, plain: Tensor, run: Callable[[], Any]) -> bool:
    if shape.numel() != plain.numel() or shape[-1] != plain.shape[-1]:
        return False
    scale = float(plain.float().abs().mean()) or 1.0
    change = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale).to(plain)
    handle = candidate.register_forward_hook(lambda module, args, output: output + change)
    try:
        moved = first_tensor(run()) - plain
    finally:
        handle.remove()
    return _close(moved, change.reshape(plain.shape), plain)


def _close(value: Tensor, expected: Tensor, scale: Tensor) -> bool:
    largest = float(torch.maximum(expected.abs().max(), scale.abs().max()))
    return float((value - expected).abs().max()) <= CLOSE * largest
