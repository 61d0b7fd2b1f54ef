"""A network without some of its layers, for a while: what scoring asks of it again and again, and nothing is copied."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sglp.layer import Layer
from sglp.running import main_input, run_hooked


class Bypass:
    """Layers of a network that can be left out for a while; it then computes what `sglp.prune` would leave of it.

    Args:
        network: the network.
        layers: what `find_layers` found.
        inputs: those of a batch; one sample of them is run to learn what layers return.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        self.more: dict[nn.Module, tuple[Callable, list] | None] = {}
        handles = [
            module.register_forward_hook(self._learn, with_kwargs=True)
            for layer, modules in zip(layers, self.modules, strict=True)
            if layer.removable
            for module in modules
        ]
        run_hooked(network, inputs, handles)

    @contextmanager
    def without(self, gone: Iterable[int]) -> Iterator[None]:
        """The layers of these numbers hand on what they are given."""
        with replaced({module: self._passthrough(module) for i in gone for module in self.modules[i]}):
            yield

    def _learn(self, module: nn.Module, args, kwargs, output) -> None:
        """What stands for each further value that a layer returns: the argument in its place, by its number, if it is
        alike; of a number (a loss of a mixture of experts), 0."""
        if isinstance(output, Tensor):
            self.more[module] = None
            return
        given = (*args, *kwargs.values())
        stand_ins = [
            i if i < len(given) and _alike(given[i], value) else _nothing(value) for i, value in enumerate(output[:])
        ]
        make = getattr(output, "_make", list if isinstance(output, list) else tuple)  # a named tuple's
        self.more[module] = make, stand_ins[1:]

    def _passthrough(self, module: nn.Module):
        more = self.more[module]

        def forward(*args, **kwargs):
            first = main_input(args, kwargs)
            if more is None or not isinstance(first, Tensor):
                return first
            given, (make, stand_ins) = (*args, *kwargs.values()), more
            return make((first, *(given[one] if isinstance(one, int) else _fresh(one) for one in stand_ins)))

        return forward


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Modules with another `forward`, for a while; all else that a network asks of them stays."""
    # Whoever wraps a network (accelerate) puts a forward of its own there, and wants it back.
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward  # an instance's own goes before its class's
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def _nothing(value) -> Tensor | None:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.ndim == 0 else None


def _fresh(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()  # the parent may add to it in place


def _alike(a, b) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b)
    return type(a) is type(b) and (not isinstance(a, Tensor) or a.shape == b.shape)
