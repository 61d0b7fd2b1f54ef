"""A network without some of its layers, for a while: what scoring asks of it again and again, and nothing is copied."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from sglp.activations import first_tensor
from sglp.batches import run_watched
from sglp.layers import Layer


class Bypass:
    """Layers of a network that can be left out for a while; it then computes what `sglp.prune` would leave of it.

    Args:
        network: the network.
        layers: what `find_layers` found.
        inputs: those of a batch; one sample of them is run to learn what layers return.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs):
        self.modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
        self.more: dict[nn.Module, int | None] = {}
        handles = [
            module.register_forward_hook(self._learn)
            for layer, modules in zip(layers, self.modules, strict=True)
            if layer.removable
            for module in modules
        ]
        run_watched(network, inputs, handles)

    @contextmanager
    def without(self, gone: Iterable[int]) -> Iterator[None]:
        """The layers of these numbers hand on what they are given."""
        modules = [module for i in gone for module in self.modules[i]]
        # Whoever wraps a network (accelerate) puts a forward of its own there, and wants it back.
        before = [(module, vars(module).get("forward")) for module in modules]
        try:
            for module in modules:
                # An instance's own `forward` goes before its class's; all else that a network asks of a layer stays.
                module.forward = self._handing_on(module)
            yield
        finally:
            for module, forward in before:
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = forward

    def _learn(self, module: nn.Module, args, output) -> None:
        self.more[module] = None if isinstance(output, Tensor) else len(output) - 1

    def _handing_on(self, module: nn.Module):
        more = self.more[module]

        def forward(*args, **kwargs):
            given = first_tensor(args or kwargs.values())
            return given if more is None else (given, *[None] * more)

        return forward
