"""The linear maps and embeddings whose outputs are added to the residual stream of a transformer as they are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sglp.cutting import Inputs
from sglp.reconstruction.affine import is_conv1d
from sglp.reconstruction.refit import detached, run_layer
from sglp.running import call, first_tensor, hooked_eval

LARGE = 1e4  # a change of the stream, relative to its largest value
CLOSE = 1e-2  # what the layer itself may add to it, relative to the change


def writers_of(modules: Sequence[nn.Module], args: tuple, kwargs: dict) -> list[nn.Module]:
    """Find the maps that a layer adds to the stream, such as the last maps of attention and of the feed-forward part.

    A large change of such a map's output moves the layer's output by the same amount: what follows in the layer reads
    the stream through a norm, and answers with a bounded change. Other maps move the output by something else.

    Args:
        modules: the modules of the layer.
        args, kwargs: what the layer is called with.
    """
    run = partial(run_layer, modules, (), detached(args), detached(kwargs))
    candidates = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    return _added(candidates, lambda: first_tensor(run()))


def embeddings_of(network: nn.Module, first: nn.Module, inside: set[nn.Module], inputs: Inputs) -> list[nn.Module]:
    """Find the embeddings and maps that are added to the input of the first layer.

    Args:
        network: the network.
        first: the first module of the first layer.
        inside: the modules of all layers.
        inputs: one sample.
    """
    candidates = [
        m for m in network.modules() if m not in inside and (isinstance(m, nn.Embedding | nn.Linear) or is_conv1d(m))
    ]

    def stream() -> Tensor:
        seen: list[Tensor] = []
        handle = first.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(first_tensor(args or kwargs).clone()), with_kwargs=True
        )
        try:
            call(network, inputs)
        finally:
            handle.remove()
        return seen[0]

    return _added(candidates, stream)


def _added(candidates: Sequence[nn.Module], stream: Callable[[], Tensor]) -> list[nn.Module]:
    """Find the modules that run once and whose outputs are added to what `stream` returns."""
    outputs: dict[nn.Module, list[torch.Size]] = {}

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        outputs.setdefault(module, []).append(output.shape)

    handles = [module.register_forward_hook(note) for module in candidates]
    try:
        plain = stream().clone()
    finally:
        for handle in handles:
            handle.remove()
    return [
        module for module, shapes in outputs.items() if len(shapes) == 1 and _is_added(module, shapes[0], plain, stream)
    ]


def _is_added(module: nn.Module, shape: torch.Size, plain: Tensor, stream: Callable[[], Tensor]) -> bool:
    if shape[-1] != plain.shape[-1] or plain.numel() != shape.numel():
        return False
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(plain)
    change *= LARGE * (float(plain.abs().max()) or 1.0)
    handle = module.register_forward_hook(lambda module, args, output: output + change)
    try:
        moved = stream() - plain
    finally:
        handle.remove()
    expected = change.reshape(plain.shape)
    return float((moved - expected).abs().max()) <= CLOSE * float(change.abs().max())


def final_norm(network: nn.Module, inside: set[nn.Module], channels: int, inputs: Inputs) -> nn.Module | None:
    """Find the last module outside the layers that has a weight [channels]: the norm before the output embedding."""
    ran: list[nn.Module] = []
    norms = [
        m
        for m in network.modules()
        if m not in inside and isinstance(w := getattr(m, "weight", None), Tensor) and w.shape == (channels,)
    ]
    with hooked_eval(network, [m.register_forward_hook(lambda module, *_: ran.append(module)) for m in norms]):
        call(network, inputs)
    return ran[-1] if ran else None
