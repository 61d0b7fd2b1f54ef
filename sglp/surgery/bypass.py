"""Bypass layers of a network temporarily, so that plans can be scored without copying the network."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sglp.batches import Inputs
from sglp.layer import Layer
from sglp.running import main_input, run_hooked


class Bypass:
    """The removable layers of a network, which can be bypassed temporarily.

    With bypassed layers the network computes what the network that `sglp.prune` returns would compute.

    Args:
        network: the network.
        layers: its layers, from `find_layers`.
        inputs: inputs of a batch; one sample is run to learn what the layers return.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs: Inputs):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        # How to make the output of a bypassed module: the container, and the outputs after the first (see `_learn`).
        self.extra_outputs: dict[nn.Module, tuple[Callable, list] | None] = {}
        handles = [
            module.register_forward_hook(self._learn, with_kwargs=True)
            for layer, modules in zip(layers, self.modules, strict=True)
            if layer.removable
            for module in modules
        ]
        run_hooked(network, inputs, handles)

    @contextmanager
    def without(self, removed: Iterable[int]) -> Iterator[None]:
        """Bypass the layers with these indices inside a context: each returns its main input."""
        with replaced({module: self._passthrough(module) for i in removed for module in self.modules[i]}):
            yield

    def _learn(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """For each extra output, record a substitute.

        This is the index of the argument at the same position if it has the same shape, zero for a scalar (such as the
        loss of a mixture of experts), or None.
        """
        if isinstance(output, Tensor):
            self.extra_outputs[module] = None
            return
        arguments = (*args, *kwargs.values())
        substitutes = [
            i if i < len(arguments) and _alike(arguments[i], value) else _zero(value)
            for i, value in enumerate(output[:])
        ]
        container = getattr(output, "_make", list if isinstance(output, list) else tuple)  # _make: of a named tuple
        self.extra_outputs[module] = container, substitutes[1:]

    def _passthrough(self, module: nn.Module) -> Callable:
        extra = self.extra_outputs[module]

        def forward(*args: Any, **kwargs: Any) -> Any:
            first = main_input(args, kwargs)
            if extra is None or not isinstance(first, Tensor):
                return first
            arguments = (*args, *kwargs.values())
            container, substitutes = extra
            return container((first, *(arguments[s] if isinstance(s, int) else _copy(s) for s in substitutes)))

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


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b)
    return type(a) is type(b) and (not isinstance(a, Tensor) or a.shape == b.shape)
