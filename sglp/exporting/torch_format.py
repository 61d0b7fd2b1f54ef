"""The torch-export format (.pt2): the traced operations with the weights, read by `torch.export.load`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sglp.exporting.example_input import tensors_of
from sglp.running import call

# The same operations give the same bits, except in nn.MultiheadAttention: in eval mode, it runs a fused kernel that is
# not traced.
TOLERANCE = 1e-5


def check(network: nn.Module) -> None:
    """Accept every network: the format holds any precision and size."""


def write(program: ExportedProgram, path: Path) -> None:
    """Write a traced network."""
    with path.open("wb") as file:  # with a path, torch would write its temporary name into the file
        torch.export.save(program, file)


def read(path: Path) -> Callable[[Any], Tensor]:
    """Load a file, and return the function from inputs to logits that it computes."""
    with path.open("rb") as file:  # with a path, torch would warn about any suffix other than .pt2
        module = torch.export.load(file).module()
    return lambda inputs: call(module, inputs if isinstance(inputs, Tensor) else tensors_of(inputs))
