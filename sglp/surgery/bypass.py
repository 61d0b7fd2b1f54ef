"""Bypass layers of a network temporarily, so that plans can be scored without copying the network."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sglp.batches import to_device
from sglp.cutting import Inputs
from sglp.layer import Layer, branch_paths
from sglp.running import call, device_of, hooked_eval, main_input, run_hooked
from sglp.surgery.streams import Arguments, items_of


class Bypass:
    """The removable layers of a network, which can be bypassed temporarily.

    With bypassed layers the network computes what the network that `sglp.prune` returns would compute: a module returns
    the streams that it was passed (see `sglp.surgery.streams`). A branch that the parent adds returns zeros.

    Args:
        network: the network.
        layers: its layers, from `find_layers`.
        inputs: inputs of a batch; one sample is run to learn what the layers return.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs: Inputs):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        self.branches = {network.get_submodule(path) for layer in layers for path in branch_paths(layer.name)}
        # How to make the output of a bypassed module: the container, and what it holds (see `_learn`).
        self.substitutes: dict[nn.Module, tuple[Callable | None, list]] = {}
        removable = [
            module for layer, modules in zip(layers, self.modules, strict=True) if layer.removable for module in modules
        ]
        try:
            run_hooked(network, inputs, self._hooks(removable))
        except Exception:  # tensors of a graph can't be cut into samples: then all are run
            with hooked_eval(network, self._hooks(removable)):
                call(network, to_device(inputs, device_of(network)))

    @contextmanager
    def without(self, removed: Iterable[int]) -> Iterator[None]:
        """Bypass the layers with these indices inside a context: each returns its main input."""
        with replaced({module: self._passthrough(module) for i in removed for module in self.modules[i]}):
            yield

    def _hooks(self, modules: Iterable[nn.Module]) -> list[RemovableHandle]:
        return [module.register_forward_hook(self._learn, with_kwargs=True) for module in modules]

    def _learn(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Record a substitute for each output.

        This is the index of an argument (see `Arguments.substitutes`), zero for a scalar (such as the loss of a mixture
        of experts), or None.
        """
        indices = Arguments.of_call(args, kwargs).substitutes(output)
        substitutes = [
            _zero(value) if index is None else index for index, value in zip(indices, items_of(output), strict=True)
        ]
        container = None
        if not isinstance(output, Tensor):
            # _make: of a named tuple.
            container = getattr(output, "_make", list if isinstance(output, list) else tuple)
        self.substitutes[module] = container, substitutes

    def _passthrough(self, module: nn.Module) -> Callable:
        container, substitutes = self.substitutes[module]
        is_branch = module in self.branches

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = (*args, *kwargs.values())
            main = main_input(args, kwargs)
            if is_branch:
                first = torch.zeros_like(main)
            elif not isinstance(main, Tensor):
                return main
            else:
                first = arguments[substitutes[0]] if substitutes and isinstance(substitutes[0], int) else main
            if container is None:
                return first
            return container((first, *(arguments[s] if isinstance(s, int) else _copy(s) for s in substitutes[1:])))

        return forward


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replace the `forward` of modules inside a context; all their other attributes are unchanged."""
    # Libraries that wrap a network (accelerate) set a forward on the instance, which must be restored.
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward  # an instance attribute hides the method of the class
        yield
    finally:
        for module, original in before.items():
            if original is None:
                vars(module).pop("forward", None)
            else:
                module.forward = original


def _zero(value: Any) -> Tensor | None:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.ndim == 0 else None


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()  # the parent may add to it in place
