""".pt2, which torch.export.load reads: the traced operations with the weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sglp.exporting.example_input import tensors_of
from sglp.running import call

# The same operations give the same bits, but for nn.MultiheadAttention: in eval mode it runs a fused kernel, which is
# not traced.
TOLERANCE = 1e-5


def check(network: nn.Module) -> None:
    """Every precision and size can be held."""


def write(program: ExportedProgram, path: Path) -> None:
    """Write a traced network."""
    with path.open("wb") as file:  # given a path, torch writes its temporary name into the file
        torch.export.save(program, file)


def read(path: Path) -> Callable:
    """What a file computes, as a function from inputs to logits."""
    with path.open("rb") as file:  # given a path, torch complains about other endings than .pt2
        module = torch.export.load(file).module()
    return lambda inputs: call(module, inputs if isinstance(inputs, Tensor) else tensors_of(inputs))
