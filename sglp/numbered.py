"""Finds lists of layers whose parent goes by their numbers, so that no layer can leave them.

A parent may do something at its tenth layer, as ConViT, which adds a token there, or go through two lists side by side.
The network then runs without the layer, but computes something else than with the layer bypassed. One try tells: the
first of the list is taken out for a moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.batches import call, eval_mode
from sglp.bypass import Bypass


def numbered_lists(network: nn.Module, layers: Sequence, example) -> set[str]:
    """The paths of the lists (`nn.ModuleList`) from which no layer can be taken.

    Args:
        network: any module; left as it was.
        layers: those found so far.
        example: a tensor [samples, ...], or a dict of keyword arguments.
    """
    first: dict[str, int] = {}
    for i, layer in enumerate(layers):
        parent = layer.modules[0].rpartition(".")[0]
        if layer.removable and isinstance(network.get_submodule(parent), nn.ModuleList):
            first.setdefault(parent, i)
    if not first:
        return set()
    bypass, found = Bypass(network, layers, example), set()
    with eval_mode(network), torch.no_grad():
        for parent, i in first.items():
            with bypass.without([i]):
                expected = _tensors(call(network, example))
            with _taken_out(network.get_submodule(parent), layers[i].modules[0].rpartition(".")[2]):
                try:
                    left = _tensors(call(network, example))
                except Exception:  # whatever the network raises without it
                    left = []
            if len(left) != len(expected) or not all(map(torch.equal, left, expected)):
                found.add(parent)
    return found


def _tensors(output) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def _taken_out(parent: nn.ModuleList, name: str) -> Iterator[None]:
    """A list without one of its modules, for a while."""
    children = dict(parent._modules)
    try:
        parent._modules.clear()
        parent._modules.update((str(i), m) for i, m in enumerate(m for key, m in children.items() if key != name))
        yield
    finally:
        parent._modules.clear()
        parent._modules.update(children)
