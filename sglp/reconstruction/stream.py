"""The parts of a pre-norm transformer that set the scale of its residual stream."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sglp.errors import ScoringError
from sglp.reconstruction.writers import embeddings_of, final_norm, writers_of
from sglp.running import call, first_tensor, hooked_eval

CHECKED = 256.0  # two scales, this one and its double, at which the epsilons of norms have little effect
CLOSE = 0.05  # share of what a layer adds to the stream that may fail to scale: roundings, and the rest of that effect


class Parts(NamedTuple):
    """The modules to scale.

    Attributes:
        embeddings: what makes the input of the first layer.
        layers: the maps that each kept layer adds to the stream, by the layer's name.
        norm: the final norm if the output embedding is tied to the input embedding, else None.
    """

    embeddings: list[nn.Module]
    layers: dict[str, list[nn.Module]]
    norm: nn.Module | None


def find_parts(pruned: nn.Module, kept: Mapping[str, list[nn.Module]], inputs: Any) -> Parts:
    """Find what to scale, and check by running that scaling it scales the stream and nothing else.

    Args:
        pruned: the network; its parameters change for the check, and are restored.
        kept: the modules of each layer, in the order in which they run.
        inputs: one sample.

    Raises:
        ScoringError: it does not.
    """
    calls: dict[str, tuple[tuple, dict]] = {}
    handles = [
        modules[0].register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls.update({name: (args, kwargs)}), with_kwargs=True
        )
        for name, modules in kept.items()
    ]
    inside = {inner for modules in kept.values() for module in modules for inner in module.modules()}
    with hooked_eval(pruned, handles):
        call(pruned, inputs)
        layers = {name: writers_of(modules, *calls[name]) for name, modules in kept.items()}
        embeddings = embeddings_of(pruned, next(iter(kept.values()))[0], inside, inputs)
        stream = first_tensor(calls[next(iter(kept))])
    tied = {id(p) for module in embeddings for p in module.parameters()} & {
        id(p) for module in pruned.modules() if module not in embeddings for p in module.parameters(recurse=False)
    }
    parts = Parts(embeddings, layers, final_norm(pruned, inside, stream.shape[-1], inputs) if tied else None)
    once, twice = (_states(pruned, list(kept.values()), parts, scale, inputs) for scale in (CHECKED, 2 * CHECKED))
    *streams, output = (_distance(a, b) for a, b in zip(once, twice, strict=True))
    # What does not scale is divided by CHECKED and by its double, so that it is this share of the distance.
    scaled = max(output, *(2 * CHECKED * distance for distance in streams)) <= CLOSE
    weights = [id(p) for maps in layers.values() for one in maps for p in one.parameters(recurse=False)]
    if not scaled or stream.ndim != 3 or len(weights) != len(set(weights)):
        raise ScoringError(
            f"prune_comp can't scale the residual stream of {type(pruned).__name__}: it needs a transformer in float32 "
            "or bfloat16 whose layers begin with norms, share no weights, and add only outputs of linear maps"
        )
    return parts


def _states(
    pruned: nn.Module, layers: Sequence[list[nn.Module]], parts: Parts, scale: float, inputs: Any
) -> list[Tensor]:
    """Return what enters the stream and what each layer adds to it, divided by a scale of all parts, and the output."""
    stream: list[Tensor] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream.append(first_tensor(args or kwargs) / scale)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        stream.append(first_tensor(output) / scale)

    handles = [modules[0].register_forward_pre_hook(enter, with_kwargs=True) for modules in layers]
    handles.append(layers[-1][-1].register_forward_hook(leave))
    with hooked_eval(pruned, handles), _multiplied(parts, scale):
        output = first_tensor(call(pruned, inputs)).clone()
    return [stream[0], *(after - before for before, after in pairwise(stream)), output]


@contextmanager
def _multiplied(parts: Parts, scale: float) -> Iterator[None]:
    """Scale all parts inside a context."""
    maps = [*parts.embeddings, *(one for maps in parts.layers.values() for one in maps)]
    norms = [] if parts.norm is None else [parts.norm]
    before = {p: p.detach().clone() for module in (*maps, *norms) for p in module.parameters(recurse=False)}
    try:
        multiply(maps, scale)
        multiply(norms, 1 / scale)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


def multiply(modules: Sequence[nn.Module], scale: float) -> None:
    """Scale the parameters of modules in place."""
    with torch.no_grad():
        for parameter in {p: None for module in modules for p in module.parameters(recurse=False)}:
            parameter.copy_((parameter.double() * scale).to(parameter.dtype))


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the mean over tokens of the relative distance; infinity if it is not finite."""
    tiny = torch.finfo(torch.float64).tiny  # the embedding of padding can be zero
    distances = (a.double() - b.double()).norm(dim=-1) / b.double().norm(dim=-1).clamp_min(tiny)
    return value if math.isfinite(value := float(distances.mean())) else math.inf
