"""Costs of a network: parameters, multiply-accumulates and memory.

One multiply-accumulate (MAC) is two floating-point operations (FLOPs); pruning papers often write FLOPs for MACs.
torch's own counter counts convolutions and matrix products, including those of attention.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sglp.cutting import Inputs, size_of
from sglp.running import call, eval_mode


def count_parameters(network: nn.Module) -> int:
    """Count the parameters of a network; shared parameters count once."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, example: Inputs) -> int:
    """Count the multiply-accumulates of one sample's forward pass."""
    return macs_by_module(network, example)[""]


def macs_by_module(network: nn.Module, example: Inputs) -> dict[str, int]:
    """Count the multiply-accumulates of one sample's forward pass by module path; "" is the whole network.

    Args:
        network: any module; runs once in eval mode and is left unchanged.
        example: a tensor [samples, ...], or a dict of keyword arguments.
    """
    # Attention runs as plain matrix products, as not every version of the counter knows every fused kernel.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_flops})
    with _evaluated(network), sdpa_kernel(SDPBackend.MATH), counter:
        call(network, example)
    samples = size_of(example)
    root = type(network).__name__
    macs = {"": 0}
    for name, operations in counter.get_flop_counts().items():
        path = "" if name == "Global" else name.removeprefix(root).removeprefix(".")
        macs[path] = sum(operations.values()) // (2 * samples)
    return macs


def _grouped_flops(a: tuple[int, ...], b: tuple[int, ...], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Count the FLOPs of a grouped matrix product (one matrix per expert), which torch's counter does not know."""
    return 2 * math.prod(out_shape) * a[-1]


def peak_memory(network: nn.Module, example: Any) -> int:
    """Measure the peak bytes of live tensors in a forward pass without gradients, including the weights.

    The memory of each tensor is followed from its creation to its release, so the figure is exact and the same on every
    run. Memory that operations use internally is not counted.
    """
    tracker = _LiveBytes()
    for tensor in [*network.parameters(), *network.buffers(), *tree_leaves(example)]:
        tracker.follow(tensor)
    with _evaluated(network), tracker:
        call(network, example)
    return tracker.peak


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode without gradients inside a context."""
    # The counter tracks modules through their gradients, and fails if a module receives a parameter that has none.
    trainable = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with eval_mode(network), torch.no_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class _LiveBytes(TorchDispatchMode):
    """A counter of the bytes of live tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.followed: set[int] = set()

    def follow(self, tensor: Any) -> None:
        """Count the storage of a tensor, once, until the storage is released."""
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.followed:
            return
        self.followed.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.followed.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self.follow(leaf)
        return result
