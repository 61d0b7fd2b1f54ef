"""Check that an exported file computes the same logits as the network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sglp.errors import CheckpointError, first_line
from sglp.exporting.program import random_inputs
from sglp.running import call, logits_of

# Numbers of samples and of tokens of the compared batches; both differ from the traced ones.
SIZES = ((1, 5), (3, 11))


def check_agreement(network: nn.Module, read: Callable[[Any], Tensor], example: Any, tolerance: float, to: str) -> None:
    """Compare logits on random batches of two sizes.

    Args:
        network: the original network, in eval mode on the CPU.
        read: the function from inputs to logits that the file computes.
        example: example inputs; only their shapes matter, and the values of integers.
        tolerance: the largest allowed difference, relative to the network's largest absolute logit.
        to: the name of the format, for errors.

    Raises:
        CheckpointError: the logits differ by more, or the file can't be run.
    """
    name = type(network).__name__
    for samples, tokens in SIZES:
        inputs = random_inputs(example, samples, seed=samples, tokens=tokens)
        with torch.no_grad():
            expected = logits_of(call(network, inputs)).float()
            try:
                logits = read(inputs).float()
            except Exception as error:  # report any error of a runtime in one sentence
                raise CheckpointError(
                    f"{name} exported to {to} can't be run on a batch of {samples}: {first_line(error)}"
                ) from error
        if not expected.isfinite().all():
            raise CheckpointError(f"{name} can't be exported: its outputs on random inputs are not finite")
        if logits.shape != expected.shape:
            raise CheckpointError(
                f"{name} exported to {to} returns logits of the shape {list(logits.shape)}, but the network's have the "
                f"shape {list(expected.shape)}"
            )
        error_share = ((logits - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)).item()
        if not error_share <= tolerance:
            raise CheckpointError(
                f"{name} exported to {to} gives other outputs on a batch of {samples}: its logits are off by "
                f"{error_share:.1e} of the largest one, but at most {tolerance:g} is allowed"
            )
