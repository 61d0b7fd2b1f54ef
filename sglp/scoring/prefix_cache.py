"""Passes that begin where they differ from the one before: what scoring asks differs in a few layers each time.

Layers run one after the other. As long as a pass has them in the same states as the last one (in or out, with the same
weights), they give what they gave then, and the first that differs is the first to be computed. With gradients, the
graph of what was not computed anew is the one that stands, so that they flow through all of the network.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sglp.layer import Layer
from sglp.surgery.bypass import replaced


class _Given(NamedTuple):
    """What a module gave, how often it had been changed in place by then, and the random state after it."""

    value: object
    versions: list[int]
    random: list[Tensor]


class PrefixCache:
    """What the layers of a network gave in the last pass of each batch.

    It keeps the outputs of all layers, batch by batch; with gradients the graphs too, which `backward` must leave.

    Args:
        network: the network.
        layers: what `find_layers` found.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer]):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        self.changed: set[nn.Module] = set()  # whose output is changed in place by what comes after
        self.last: dict[Hashable, tuple[list, dict[nn.Module, _Given]]] = {}

    @contextmanager
    def reuse(self, batch: Hashable, states: Sequence) -> Iterator[None]:
        """In here one pass runs, from the first layer on whose state is not that of the last pass of this batch.

        Args:
            batch: its number.
            states: one a layer; what its output depends on, besides the batch and the layers before it.
        """
        before, given = self.last.pop(batch, ([], {}))
        same = 0
        while same < len(before) and before[same] == states[same]:
            same += 1
        forwards = {
            module: self._run_or_replay(module, given, given.get(module) if number < same else None)
            for number, modules in enumerate(self.modules)
            for module in modules
        }
        with replaced(forwards):
            yield
        # What is changed in place is of no use: next time a copy is kept of it.
        modified_in_place = {module for module, one in given.items() if one.versions != _versions(one.value)}
        self.changed |= modified_in_place
        whole = next((i for i, modules in enumerate(self.modules) if modified_in_place & set(modules)), len(states))
        self.last[batch] = (list(states[:whole]), given)

    def _run_or_replay(self, module: nn.Module, given: dict[nn.Module, _Given], known: _Given | None) -> Callable:
        forward, runs = module.forward, count()

        def once(*args, **kwargs):
            if next(runs):  # each run gives something else (of an activation that is shared): none is given again
                given.pop(module, None)
                return forward(*args, **kwargs)
            if known:
                _set_random_state(known.random, known.value)
                return _copy(known.value) if module in self.changed else known.value
            value = forward(*args, **kwargs)
            kept = _copy(value) if module in self.changed else value
            given[module] = _Given(kept, _versions(kept), _random_state(value) if module.training else [])
            return value

        return once


def _versions(value) -> list[int]:
    return [leaf._version for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _set_random_state(states: list[Tensor], value) -> None:
    places = _places(value)
    for state, place in zip(states, (None, *places), strict=False):
        if place is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, place)


def _places(value) -> list[torch.device]:
    """The GPUs that a value lies on."""
    return sorted({leaf.device for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_cuda}, key=str)


def _copy(value):
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _random_state(value) -> list[Tensor]:
    """Of the CPU, and of the GPU that a value lies on."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(place) for place in _places(value))]
