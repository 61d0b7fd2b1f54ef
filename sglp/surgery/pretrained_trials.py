"""Find layers of Hugging Face models that look removable but can't be removed, before anything is scored.

The config of such a model counts its layers, and surgery updates it. Still, the first layer may compute something that
all others use (T5's relative positions), an index may be part of what a layer computes, and a hybrid without its last
attention layer may have no cache. Trying some removals shows this: the first two layers, the last one, the first one
of each kind, and half of them together; for hybrids also each kind of layers, with a cache. The copies that are tried
share their weights with the model.
"""

import copy
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sglp.cutting import Inputs
from sglp.errors import PlanError
from sglp.hugging_face.caches import cache_fault, kinds_of, uses_cache
from sglp.hugging_face.networks import stack_of
from sglp.hugging_face.wrapping import inner_models, inside
from sglp.layer import Layer
from sglp.running import eval_mode, main_input
from sglp.surgery.equivalence import INDEXED_BY_PARENT, first_output, outputs_differ, unremovable
from sglp.surgery.prune import remove_modules

NEEDED_BY_OTHERS = "computes or holds something that other layers need"
LAST_OF_ITS_KIND = "stays as the one layer of its kind without which what is left does not run with a cache"
FIRST_OF_STACK = "is first, and a stack that begins with another kind of layer does not run with a cache"


def unremovable_anywhere(
    network: nn.Module, layers: Sequence[Layer], called: Container[nn.Module], example: Inputs
) -> dict[int, str]:
    """Find layers that can be bypassed but not removed, in Hugging Face models and in other modules.

    Args:
        network: any module; left unchanged.
        layers: its layers.
        called: the modules that the forward pass called.
        example: a tensor [samples, ...], or a dict of keyword arguments.

    Returns:
        The reasons, by layer index.
    """
    reasons: dict[int, str] = {}
    others = set(range(len(layers)))
    for path, inner in inner_models(network).items():
        by_parent: dict[str, list[int]] = {}
        for i, layer in enumerate(layers):
            if layer.removable and (paths := inside(path, layer.modules)):
                by_parent.setdefault(paths[0].rpartition(".")[0], []).append(i)
        stacks: dict[tuple[str, ...], list[int]] = {}
        for indices in by_parent.values():
            try:
                stack = stack_of(inner, inside(path, layers[indices[0]].modules))
            except PlanError as error:
                reasons |= dict.fromkeys(indices, str(error))
                stack = []
            if stack is not None:
                others.difference_update(indices)
            if stack:
                stacks.setdefault(tuple(stack), []).extend(indices)
        if not any(parameter.is_meta for parameter in inner.parameters()):  # of these, nothing can be computed
            for indices in stacks.values():
                reasons |= _Trials(network, path, layers, example).reasons(sorted(indices))
    rest = [layer if i in others else Layer(layer.name, False, "", 0, 0) for i, layer in enumerate(layers)]
    return reasons | unremovable(network, rest, called, example)


class _Trials:
    """Trials of a Hugging Face model's layers.

    Args:
        network: the network, left unchanged.
        path: the path of the model in it.
        layers: the layers of the network.
        example: its inputs.
    """

    def __init__(self, network: nn.Module, path: str, layers: Sequence[Layer], example: Inputs):
        self.network = network
        self.path = path
        self.layers = layers
        self.example = example

    def reasons(self, indices: list[int]) -> dict[int, str]:
        """Return why layers of one stack can't be removed, by index.

        Args:
            indices: the indices of the stack's removable layers, in order of execution.
        """
        inner = self.network.get_submodule(self.path)
        kinds = kinds_of(inner, [inside(self.path, self.layers[i].modules)[0] for i in indices])
        tried = sorted({*indices[:2], indices[-1], *(indices[kinds.index(kind)] for kind in kinds)})
        with eval_mode(self.network), torch.no_grad():
            failed = [i for i in tried if not self._can_be_removed([i])]
            free = [i for i in indices if i not in failed]
            if len(failed) > 1 or not (len(free) < 2 or self._can_be_removed(free[::2])):
                failed = [i for i in indices if i in failed or (i not in tried and not self._can_be_removed([i]))]
                free = [i for i in indices if i not in failed]
                if len(free) > 1 and not self._can_be_removed(free[::2]):
                    return dict.fromkeys(indices, INDEXED_BY_PARENT)
            reasons = dict.fromkeys(failed, NEEDED_BY_OTHERS)
            if len(set(kinds)) > 1 and uses_cache(inner):
                reasons |= self._reasons_of_caches(indices, kinds, set(failed))
        return reasons

    def _reasons_of_caches(self, indices: list[int], kinds: list[Any], failed: set[int]) -> dict[int, str]:
        """Return the layers that stay so that what is left runs with a cache."""
        reasons: dict[int, str] = {}
        for kind in dict.fromkeys(kinds):
            alike = [i for i, other in zip(indices, kinds, strict=True) if other == kind]
            if not failed.intersection(alike) and len(alike) < len(indices) and not self._runs_with_cache(alike):
                reasons[alike[0]] = LAST_OF_ITS_KIND
        first_others = next(n for n, kind in enumerate(kinds) if kind != kinds[0])
        prefix = indices[:first_others]
        if not (failed | set(reasons)).intersection(prefix) and not self._runs_with_cache(prefix):
            reasons[indices[0]] = FIRST_OF_STACK
        return reasons

    def _can_be_removed(self, indices: Sequence[int]) -> bool:
        """Check that a copy without some layers computes what the network with their branches removed computes."""
        paths = [path for i in indices for path in self.layers[i].modules]
        try:
            small = self._without(paths)
        except PlanError:
            return False
        outputs = first_output(small, self.example)
        with _skipped(self.network, paths):
            expected = first_output(self.network, self.example)
            return expected is not None and not outputs_differ(
                outputs, expected, lambda: first_output(self.network, self.example, seed=1)
            )

    def _runs_with_cache(self, indices: Sequence[int]) -> bool:
        small = self._without([path for i in indices for path in self.layers[i].modules])
        models: Any = [network.get_submodule(self.path) for network in (small, self.network)]
        return not cache_fault(*models)

    def _without(self, paths: Sequence[str]) -> nn.Module:
        tensors: Iterable[Tensor] = (*self.network.parameters(), *self.network.buffers())
        small = copy.deepcopy(self.network, {id(tensor): tensor for tensor in tensors})
        remove_modules(small, paths)
        return small.eval()


@contextmanager
def _skipped(network: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Let layers return their input inside a context, next to the further values that they compute."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        first = main_input(args, kwargs)
        if isinstance(output, tuple | list) and isinstance(first, Tensor):
            return type(output)([first, *output[1:]])
        return first

    handles = [network.get_submodule(path).register_forward_hook(hook, with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
