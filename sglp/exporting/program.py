"""Trace a network with torch.export: the operations of one forward pass, for batches of any size."""

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_shapes import Sizes, dims_of, holds_tensors, mapped, random_inputs, sizes_of
from sglp.exporting.outputs import is_plain, named_outputs
from sglp.hugging_face.networks import is_pretrained
from sglp.running import call

TRACED_SAMPLES = 2  # size of the traced batch; torch.export treats a size of 1 as a constant


class _Plain(nn.Module):
    """A wrapper that returns only tensors: one, a tuple of them, or a dict of them; see `_wrapped` for its forward."""

    def __init__(self, network: nn.Module, constants: dict[str, Any]):
        super().__init__()
        self.network = network
        self.constants = constants

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network and return its tensors."""
        output = self.network(*args, **kwargs, **self.constants)
        named = named_outputs(output)
        if len(named) == 1:
            return next(iter(named.values()))
        return tuple(named.values()) if type(output) in (tuple, list) else named


def _wrapped(network: nn.Module, constants: dict[str, Any], inputs: Any) -> nn.Module:
    """Wrap a network in a `_Plain` whose forward names its arguments: torch.export loses those behind `**kwargs`."""
    if isinstance(inputs, Mapping):
        names = [str(name) for name in inputs]
        passed = ", ".join(f"{name}={name}" for name in names)
        if not all(name.isidentifier() and not iskeyword(name) for name in names):
            raise CheckpointError(f"arguments called {' and '.join(names)} can't be exported: use names of Python")
    else:
        names = [f"input_{i}" for i in range(len(inputs) if isinstance(inputs, tuple) else 1)]
        passed = ", ".join(names)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(names)}): return self.plain({passed})", scope)  # noqa: S102
    return type("Plain", (_Plain,), {"forward": scope["forward"]})(network, constants)


def trace_program(network: nn.Module, example: Any) -> ExportedProgram:
    """Trace a network in eval mode, with a variable batch size and a variable length of token ids.

    The length has the bounds that the network itself sets, such as its number of learned positions.

    Raises:
        CheckpointError: torch.export can't trace the network, or only for batches of one size.
    """
    inputs = random_inputs(example, TRACED_SAMPLES, seed=0)
    with torch.no_grad():
        output = call(network, inputs)
    constants = {}
    if isinstance(inputs, Mapping):
        constants = {name: value for name, value in inputs.items() if not holds_tensors(value)}
        inputs = {name: value for name, value in inputs.items() if name not in constants}
    sizes = sizes_of(inputs)
    traced = network
    if is_pretrained(network) or constants or not is_plain(output):
        traced = _wrapped(network, constants, inputs)
    try:
        try:
            program = _export(traced, inputs, sizes, Dim("tokens"))
        except Exception:
            if sizes.tokens is None:
                raise
            # torch finds the bounds of the length, but writes names into this program that it can't read again.
            least, most = _bounds(_export(traced, inputs, sizes, Dim.DYNAMIC), sizes)
            program = _export(traced, inputs, sizes, Dim("tokens", min=least, max=most))
    except Exception as error:  # report any error of torch in one sentence
        raise CheckpointError(
            f"torch.export can't trace this {type(network).__name__} for batches of any size: {_reason(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def _export(traced: nn.Module, inputs: Any, sizes: Sizes, tokens: Any) -> ExportedProgram:
    batch = Dim("batch")

    def dynamic(name: str, value: Tensor) -> dict[int, Any]:
        dims = dims_of(value, sizes)
        return {**({0: batch} if dims.samples else {}), **dict.fromkeys(dims.tokens, tokens)}

    shapes = mapped(dynamic, inputs, other=None)
    # torch prints everything that it has traced before it raises an error.
    with torch.no_grad(), redirect_stderr(io.StringIO()):
        if isinstance(inputs, Mapping):
            return torch.export.export(traced, (), dict(inputs), dynamic_shapes=shapes)
        if isinstance(inputs, tuple):
            return torch.export.export(traced, inputs, dynamic_shapes=shapes)
        return torch.export.export(traced, (inputs,), dynamic_shapes=(shapes,))


def _bounds(program: ExportedProgram, sizes: Sizes) -> tuple[int | None, int | None]:
    """Return the least and the largest number of tokens that a traced program takes; None where there is no bound."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            shape: tuple[Any, ...] = tuple(value.shape)
            for size in shape:
                if isinstance(size, torch.SymInt) and size.node.hint == sizes.tokens:
                    bounds = program.range_constraints[size.node.expr]
                    least, most = (int(end) if end < 2**31 else None for end in (bounds.lower, bounds.upper))
                    return least, most
    return None, None


def _reason(error: Exception) -> str:
    """Return what torch.export found, in one sentence: its first line may only say that constraints are violated."""
    constant = re.search(r"marked (.+) as dynamic but your code specialized it to be a constant \((\d+)\)", str(error))
    if constant:
        what = "samples" if "batch" in constant[1] or "size()[0]" in constant[1] else "tokens"
        return f"its code works for one number of {what} only, the traced {constant[2]}"
    guard = re.search(r"- (Not all values of .+)", str(error))
    return f"its code depends on the size of its inputs ({guard[1].rstrip('.')})" if guard else first_line(error)
