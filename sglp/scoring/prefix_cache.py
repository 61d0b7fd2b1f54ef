"""Forward passes that skip the layers before the first one whose state has changed.

Successive scoring passes differ in only a few layers. Layers run in order, so all layers before the first one whose
state differs from the last pass of the same batch (kept or removed, trained or random weights) return what they
returned then: their outputs are replayed, and only the rest is computed. With gradients, the stored outputs keep their
graphs, so that gradients still flow through the whole network.
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


class _Output(NamedTuple):
    """A module's output, the versions of its tensors (in-place changes so far) and the random states after it."""

    value: object
    versions: list[int]
    random_states: list[Tensor]


class PrefixCache:
    """The outputs of a network's layers in the last pass of each batch.

    The outputs of all layers are kept for every batch. With gradients their graphs are kept too, so `backward` must
    retain them.

    Args:
        network: the network.
        layers: as returned by `find_layers`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer]):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        self.changed: set[nn.Module] = set()  # modules whose output is changed in place by later modules
        self.last: dict[Hashable, tuple[list, dict[nn.Module, _Output]]] = {}

    @contextmanager
    def reuse(self, batch: Hashable, states: Sequence) -> Iterator[None]:
        """Run one pass inside this context, computed from the first layer whose state has changed since the last pass.

        Args:
            batch: index of the batch.
            states: one per layer: everything that its output depends on, besides the batch and the layers before it.
        """
        last_states, outputs = self.last.pop(batch, ([], {}))
        num_same = 0
        while num_same < len(last_states) and last_states[num_same] == states[num_same]:
            num_same += 1
        forwards = {
            module: self._run_or_replay(module, outputs, outputs.get(module) if i < num_same else None)
            for i, modules in enumerate(self.modules)
            for module in modules
        }
        with replaced(forwards):
            yield
        # An output that was changed in place can't be replayed: next time a copy of it is stored.
        modified_in_place = {module for module, output in outputs.items() if output.versions != _versions(output.value)}
        self.changed |= modified_in_place
        num_valid = next((i for i, modules in enumerate(self.modules) if modified_in_place & set(modules)), len(states))
        self.last[batch] = (list(states[:num_valid]), outputs)

    def _run_or_replay(
        self, module: nn.Module, outputs: dict[nn.Module, _Output], stored: _Output | None
    ) -> Callable[..., object]:
        forward = module.forward
        runs = count()

        def run_or_replay(*args, **kwargs) -> object:
            if next(runs):  # a shared module (an activation) returns something else in each run: never replay it
                outputs.pop(module, None)
                return forward(*args, **kwargs)
            if stored:
                _set_random_states(stored.random_states, stored.value)
                return _copy(stored.value) if module in self.changed else stored.value
            value = forward(*args, **kwargs)
            kept = _copy(value) if module in self.changed else value
            outputs[module] = _Output(kept, _versions(kept), _random_states(value) if module.training else [])
            return value

        return run_or_replay


def _versions(value: object) -> list[int]:
    return [leaf._version for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _set_random_states(states: list[Tensor], value: object) -> None:
    for state, device in zip(states, (None, *_gpus(value)), strict=False):
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def _random_states(value: object) -> list[Tensor]:
    """Return the random states of the CPU and of the GPUs that hold a value."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _gpus(value))]


def _gpus(value: object) -> list[torch.device]:
    """Return the GPUs that hold the tensors of a value."""
    return sorted({leaf.device for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_cuda}, key=str)


def _copy(value: object) -> object:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
