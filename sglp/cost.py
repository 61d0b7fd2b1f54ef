"""What a network costs: parameters, multiply-accumulates, memory.

One multiply-accumulate (MAC) is two floating-point operations (FLOPs). Pruning papers often write FLOPs for MACs.
Counted are convolutions and matrix products (attention's too), by torch's own counter.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sglp.batches import size_of
from sglp.running import call, eval_mode


def count_parameters(network: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, example) -> int:
    """Multiply-accumulates of one sample's forward pass."""
    return macs_by_module(network, example)[""]


def macs_by_module(network: nn.Module, example) -> dict[str, int]:
    """Multiply-accumulates of one sample's forward pass, for every module path that has any ("" is the network).

    Args:
        network: any module; runs once in eval mode and is left as it was.
        example: a tensor [samples, ...], or a dict of keyword arguments.
    """
    # Attention written out in matrix products: not every version of the counter knows every fused kernel.
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


def _grouped_flops(a: tuple[int, ...], b: tuple[int, ...], *further, out_shape=None, **more) -> int:
    """A product of the rows of groups (tokens of experts) with a matrix each, which the counter does not know."""
    return 2 * math.prod(out_shape) * a[-1]


def peak_memory(network: nn.Module, example) -> int:
    """The most bytes of tensors alive at once in a forward pass without gradients, weights included.

    Counted by following every tensor's memory from its making to its end, so the figure is exact and the same on every
    run; what the operations use inside themselves is not in it.
    """
    tracker = _LiveBytes()
    for tensor in [*network.parameters(), *network.buffers(), *tree_leaves(example)]:
        tracker.follow(tensor)
    with _evaluated(network), tracker:
        call(network, example)
    return tracker.peak


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients for a while."""
    # The counter follows modules by their gradients, and stumbles over a parameter that one is handed without any.
    learning = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with eval_mode(network), torch.no_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of the tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def follow(self, tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self.follow(leaf)
        return result
