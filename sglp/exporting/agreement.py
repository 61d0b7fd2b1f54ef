"""Whether what was read from a file computes what the network computes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglp.errors import CheckpointError, first_line
from sglp.exporting.program import drawn_inputs
from sglp.running import call, logits_of

# Samples and, for token ids, lengths of the batches compared: neither is the size that was traced.
SIZES = ((1, 5), (3, 11))


def check_agreement(network: nn.Module, read: Callable, example, tolerance: float, to: str) -> None:
    """Compare logits on random batches of two sizes.

    Args:
        network: the original, in eval mode on the CPU.
        read: what the file computes: from inputs to logits.
        example: inputs, of which only the shapes count.
        tolerance: the largest difference allowed, as a share of the largest of the network's logits.
        to: what to call the format in a sentence.

    Raises:
        CheckpointError: they differ by more, or the file can't be run.
    """
    name = type(network).__name__
    for samples, tokens in SIZES:
        inputs = drawn_inputs(example, samples, seed=samples, tokens=tokens)
        with torch.no_grad():
            expected = logits_of(call(network, inputs)).float()
            try:
                found: Tensor = read(inputs).float()
            except Exception as error:  # whatever a runtime raises, the user needs one sentence
                raise CheckpointError(
                    f"{name} exported to {to} can't be run on a batch of {samples}: {first_line(error)}"
                ) from error
        if not expected.isfinite().all():
            raise CheckpointError(f"{name} can't be exported: its outputs on random inputs are not finite")
        if found.shape != expected.shape:
            raise CheckpointError(
                f"{name} exported to {to} returns the shape {list(found.shape)}, but the network {list(expected.shape)}"
            )
        share = ((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo().tiny)).item()
        if not share <= tolerance:
            raise CheckpointError(
                f"{name} exported to {to} is another network on a batch of {samples}: its logits are off by "
                f"{share:.1e} of the largest, and {tolerance:g} is allowed"
            )
