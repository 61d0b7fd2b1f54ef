"""The torch-export format (.pt2): the traced operations with the weights, read by `torch.export.load`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sglp.exporting.example_shapes import holds_tensors
from sglp.exporting.outputs import named_outputs

# The same operations give the same bits, except in nn.MultiheadAttention: in eval mode, it runs a fused kernel that is
# not traced.
TOLERANCE = 1e-5


def check(network: nn.Module) -> None:
    """Accept every network: the format holds any precision and size."""


def write(program: ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Write a traced network, whose outputs have names or positions of their own."""
    with path.open("wb") as file:  # with a path, torch would write its temporary name into the file
        torch.export.save(program, file)


def read(path: Path) -> Callable[[Any], list[Tensor]]:
    """Load a file, and return the function from inputs to outputs that it computes."""
    with path.open("rb") as file:  # with a path, torch would warn about any suffix other than .pt2
        module = torch.export.load(file).module()

    def run(inputs: Any) -> list[Tensor]:
        if isinstance(inputs, Mapping):
            output = module(**{name: value for name, value in inputs.items() if holds_tensors(value)})
        else:
            output = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
        return list(named_outputs(output).values())

    return run
