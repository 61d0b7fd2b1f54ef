"""Check that an exported file computes the same outputs as the network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sglp.errors import CheckpointError, first_line
from sglp.exporting.example_shapes import random_inputs
from sglp.exporting.outputs import named_outputs
from sglp.running import call

# Numbers of samples and of tokens of the compared batches; both differ from the traced ones.
SIZES = ((1, 5), (3, 11))


def check_agreement(
    network: nn.Module, read: Callable[[Any], list[Tensor]], example: Any, tolerance: float, to: str
) -> None:
    """Compare all outputs on random batches of two sizes.

    Args:
        network: the original network, in eval mode on the CPU.
        read: the function from inputs to outputs that the file computes.
        example: example inputs; only their shapes matter, and the values of integers.
        tolerance: the largest allowed difference of an output, relative to the network's largest absolute value in it.
        to: the name of the format, for errors.

    Raises:
        CheckpointError: outputs differ by more, or the file can't be run.
    """
    name = type(network).__name__
    for samples, tokens in SIZES:
        inputs = random_inputs(example, samples, seed=samples, tokens=tokens)
        with torch.no_grad():
            expected = named_outputs(call(network, inputs))
            try:
                outputs = read(inputs)
            except Exception as error:  # report any error of a runtime in one sentence
                raise CheckpointError(
                    f"{name} exported to {to} can't be run on a batch of {samples}: {first_line(error)}"
                ) from error
        if len(outputs) != len(expected):
            raise CheckpointError(
                f"{name} exported to {to} returns {len(outputs)} tensors, but the network returns {len(expected)} on a "
                f"batch of {samples}"
            )
        for (key, tensor), output in zip(expected.items(), outputs, strict=True):
            _compare(f"{name} exported to {to}", key, output, tensor, samples, tolerance)


def _compare(what: str, key: str, output: Tensor, expected: Tensor, samples: int, tolerance: float) -> None:
    if output.shape != expected.shape:
        raise CheckpointError(
            f"{what} returns {key} of the shape {list(output.shape)}, but the network's has the shape "
            f"{list(expected.shape)}"
        )
    if not expected.numel():
        return
    if not expected.is_floating_point() and not expected.is_complex():
        if not torch.equal(output.to(expected.dtype), expected):
            raise CheckpointError(f"{what} gives other outputs on a batch of {samples}: {key} differs")
        return
    dtype = torch.complex64 if expected.is_complex() else torch.float32
    output, expected = output.to(dtype), expected.to(dtype)
    if not expected.isfinite().all():
        raise CheckpointError(f"{what.split()[0]} can't be exported: its outputs on random inputs are not finite")
    error_share = ((output - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)).item()
    if not error_share <= tolerance:
        raise CheckpointError(
            f"{what} gives other outputs on a batch of {samples}: its {key} are off by {error_share:.1e} of the "
            f"largest value, but at most {tolerance:g} is allowed"
        )
