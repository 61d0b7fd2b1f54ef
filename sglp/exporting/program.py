"""Trace a network with torch.export: the operations of one forward pass, for batches of any size."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_input import tensors_of
from sglp.hugging_face.networks import is_pretrained
from sglp.running import logits_of

TRACED_SAMPLES = 2  # size of the traced batch; torch.export treats a size of 1 as a constant


class _Logits(nn.Module):
    """A wrapper that takes only tensors, by name, and returns only the logits of the network."""

    def __init__(self, network: nn.Module, constants: dict[str, Any]):
        super().__init__()
        self.network = network
        self.constants = constants

    def forward(self, **inputs: Tensor) -> Tensor:
        return logits_of(self.network(**inputs, **self.constants))


def trace_program(network: nn.Module, example: Any) -> ExportedProgram:
    """Trace a network in eval mode, with a variable batch size and a variable length of token ids.

    Raises:
        CheckpointError: torch.export can't trace the network, or only for batches of one size.
    """
    inputs = random_inputs(example, TRACED_SAMPLES, seed=0)
    batch = Dim("batch")
    tokens = Dim("tokens")
    dynamic_shapes = {
        name: {0: batch, 1: tokens} if _has_tokens(value, inputs) else {0: batch}
        for name, value in tensors_of(inputs).items()
    }
    try:
        # torch prints everything that it has traced before it raises an error.
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            if isinstance(inputs, Mapping):
                constants = {name: value for name, value in example.items() if name not in dynamic_shapes}
                # Wrap only if needed: behind `**inputs`, torch.export loses the names of sizes that a network reads.
                traced = _Logits(network, constants) if is_pretrained(network) or constants else network
                program = torch.export.export(traced, (), tensors_of(inputs), dynamic_shapes=dynamic_shapes)
            else:
                program = torch.export.export(network, (inputs,), dynamic_shapes=tuple(dynamic_shapes.values()))
    except Exception as error:  # report any error of torch in one sentence
        raise CheckpointError(
            f"torch.export can't trace this {type(network).__name__} for batches of any size: {first_line(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def random_inputs(example: Any, samples: int, seed: int, tokens: int | None = None) -> Any:
    """Draw a batch of random inputs like an example: normal noise, or for integers, samples of the example.

    Args:
        example: a tensor [samples, ...], or a dict of keyword arguments.
        samples: the number of samples to draw.
        seed: the seed of the draw.
        tokens: the length of token ids, if it is not the example's.

    Returns:
        A tensor or a dict, like the example.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(samples, *value.shape[1:], generator=generator).to(value.dtype)
        if _has_tokens(value, example):  # any token may be at any position
            shape = (samples, tokens or value.shape[1])
            return value.flatten()[torch.randint(value.numel(), shape, generator=generator)]
        return value[torch.randint(len(value), (samples,), generator=generator)]

    if isinstance(example, Tensor):
        return draw(example)
    return {name: draw(value) if isinstance(value, Tensor) else value for name, value in example.items()}


def _has_tokens(value: Tensor, inputs: Any) -> bool:
    """Check whether a tensor has one entry per token, [samples, tokens], such as token ids or their mask."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    return ids is not None and value.shape == ids.shape
