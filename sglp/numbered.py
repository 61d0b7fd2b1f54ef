"""Finds lists of layers whose parent goes by their numbers, so that no layer can leave them.

A parent may do something at its tenth layer, as ConViT, which adds a token there, or go through two lists side by side.
The network then runs without the layer, but computes something else than with the layer bypassed. One try tells: the
first of the list is taken out for a moment. A list is also an `nn.Sequential` that is not called itself.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.architecture import runs_in_a_row
from sglp.batches import call, device_of, eval_mode, seeded
from sglp.bypass import Bypass
from sglp.surgery import drop_modules


def in_numbered_lists(network: nn.Module, layers: Sequence, ran: Container[nn.Module], example) -> set[int]:
    """The numbers of the layers in lists from which none can be taken.

    Args:
        network: any module; left as it was.
        layers: those found so far.
        ran: the modules that were called.
        example: a tensor [samples, ...], or a dict of keyword arguments.
    """
    number = {network.get_submodule(layer.modules[0]): i for i, layer in enumerate(layers) if layer.removable}
    lists = [module for module in network.modules() if runs_in_a_row(module) and module not in ran]
    members = [inside for some in lists if (inside := sorted(number[m] for m in some.children() if m in number))]
    if not members:
        return set()
    bypass, found = Bypass(network, layers, example), set()
    with eval_mode(network), torch.no_grad():
        for inside in members:
            with bypass.without(inside[:1]):
                expected = _outputs(network, example)
            with _taken_out(network, layers[inside[0]].modules):
                try:
                    left = _outputs(network, example)
                except Exception:  # whatever the network raises without it
                    left = []
            if _same(left, expected):
                continue
            with bypass.without(inside[:1]):
                draws = not _same(expected, _outputs(network, example, seed=1))
            if not draws or len(left) != len(expected):  # of one that draws in eval mode too nothing else can be told
                found.update(inside)
    return found


def _outputs(network: nn.Module, example, seed: int = 0) -> list[Tensor]:
    with seeded(seed, device_of(network)):
        return [leaf for leaf in tree_leaves(call(network, example)) if isinstance(leaf, Tensor)]


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


@contextmanager
def _taken_out(network: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """A network without some modules, for a while."""
    gone = {network.get_submodule(path) for path in paths}
    before = [(module, dict(module._modules)) for module in network.modules() if gone.intersection(module.children())]
    try:
        drop_modules(network, paths)
        yield
    finally:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
