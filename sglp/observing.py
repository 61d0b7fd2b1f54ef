"""The activation after a layer: its output, or the residual stream after the parent has added its output."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sglp.layer import branch_start, module_paths
from sglp.running import first_tensor


def observe_after(network: nn.Module, layer: str, keep: Callable[[Any], None]) -> list[RemovableHandle]:
    """Pass what a layer returns to `keep` in every forward pass; remove the handles to end this.

    If the parent adds the layer's output to a residual stream, this is the stream after it, which a residual block
    would return.

    Args:
        network: the network.
        layer: the layer's name.
        keep: called with the output, or with the stream.
    """
    last = network.get_submodule(module_paths(layer)[-1])
    start = branch_start(layer)
    if not start:
        return [last.register_forward_hook(lambda module, args, output: keep(output))]
    streams: dict[int, Tensor] = {}  # by thread, as forward passes of several batches can take turns

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        streams[threading.get_ident()] = first_tensor(args or kwargs).clone()  # a module may work in place

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        keep(streams.pop(threading.get_ident()) + first_tensor(output))

    return [
        network.get_submodule(start).register_forward_pre_hook(before, with_kwargs=True),
        last.register_forward_hook(after),
    ]
