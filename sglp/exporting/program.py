"""A network traced by torch.export: the operations of one forward pass, for batches of any size."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_input import tensors_of
from sglp.hugging_face.networks import is_pretrained
from sglp.running import logits_of

TRACED = 2  # samples in the traced batch: torch.export takes a size of 1 for a constant


class _Logits(nn.Module):
    """A network of transformers as one that takes tensors by name and returns its logits alone."""

    def __init__(self, network: nn.Module, constants: dict):
        super().__init__()
        self.network, self.constants = network, constants

    def forward(self, **inputs: Tensor) -> Tensor:
        return logits_of(self.network(**inputs, **self.constants))


def trace_program(network: nn.Module, example) -> ExportedProgram:
    """Trace a network in eval mode; the size of the batch stays open, and the length of token ids.

    Raises:
        CheckpointError: torch.export can't trace it, or only for batches of one size.
    """
    inputs = drawn_inputs(example, TRACED, seed=0)
    sizes = {"batch": Dim("batch"), "tokens": Dim("tokens")}
    open_ = {
        name: dict(enumerate(sizes.values())) if _has_tokens(value, inputs) else {0: sizes["batch"]}
        for name, value in tensors_of(inputs).items()
    }
    try:
        # Before it raises an error, torch prints all that it has traced.
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            if isinstance(inputs, Mapping):
                constants = {name: value for name, value in example.items() if name not in open_}
                # Not without need: of sizes that a network asks about, torch.export loses the names behind `**inputs`.
                traced = _Logits(network, constants) if is_pretrained(network) or constants else network
                program = torch.export.export(traced, (), tensors_of(inputs), dynamic_shapes=open_)
            else:
                program = torch.export.export(network, (inputs,), dynamic_shapes=tuple(open_.values()))
    except Exception as error:  # whatever torch raises, the user needs one sentence
        raise CheckpointError(
            f"torch.export can't trace this {type(network).__name__} for batches of any size: {first_line(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    return program


def drawn_inputs(example, samples: int, seed: int, tokens: int | None = None):
    """A batch of random inputs like an example: normal noise, or for integers samples of the example.

    Args:
        example: a tensor [samples, ...], or a dict of keyword arguments.
        samples: how many.
        seed: of the draw.
        tokens: the length of token ids, if another than the example's.
    """
    drawn = torch.Generator().manual_seed(seed)

    def draw(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(samples, *value.shape[1:], generator=drawn).to(value.dtype)
        if _has_tokens(value, example):  # any of them can stand anywhere
            shape = (samples, tokens or value.shape[1])
            return value.flatten()[torch.randint(value.numel(), shape, generator=drawn)]
        return value[torch.randint(len(value), (samples,), generator=drawn)]

    if isinstance(example, Tensor):
        return draw(example)
    return {name: draw(value) if isinstance(value, Tensor) else value for name, value in example.items()}


def _has_tokens(value: Tensor, inputs) -> bool:
    """Whether a tensor is token ids [samples, tokens], or of each token, as their mask."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    return ids is not None and value.shape == ids.shape
