"""Passes of a network over a few samples, which show before any long work whether the data fit it."""

from typing import Any

import torch
from torch import nn

from sglp.batches import described, to_device
from sglp.errors import DataError, ScoringError, SGLPError, first_line
from sglp.loss import Loss, loss_of, without_padding
from sglp.running import call, device_of, eval_mode, first_tensor


def check_runs(model: nn.Module, example: Any) -> None:
    """Check that a network runs on a sample of the batches.

    Raises:
        DataError: it does not.
    """
    try:
        with eval_mode(model), torch.no_grad():
            call(model, example)
    except Exception as error:  # whatever a network raises, the user needs one sentence
        raise DataError(
            f"this {type(model).__name__} can't be run on the first sample of the batches ({described(example)}): "
            f"{first_line(error)}"
        ) from error


def check_loss(model: nn.Module, batch: tuple, loss: Loss) -> None:
    """Check that the loss can be computed from a network's output for a batch.

    Raises:
        SGLPError: it can't be.
    """
    inputs, target = to_device(batch, device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            float(loss_of(loss, call(model, inputs), without_padding(loss, inputs, target)))
    except SGLPError:
        raise
    except Exception as error:  # whatever a network or a loss raises, the user needs one sentence
        raise ScoringError(f"the loss of the network's output can't be computed: {first_line(error)}") from error


def gives_the_same(model: nn.Module, sample: Any, inputs: Any) -> bool:
    """Check that the first sample of a batch, run alone, gives the same outputs as in the batch."""
    device = device_of(model)
    try:
        with eval_mode(model), torch.no_grad():
            alone, together = (first_tensor(call(model, to_device(one, device))) for one in (sample, inputs))
    except Exception:  # what belongs to all samples does not fit a part of them
        return False
    if alone.shape[1:] != together.shape[1:] or len(alone) != 1:
        return False
    alone, together = alone[0].float(), together[0].float()
    return bool((alone - together).abs().max() <= 1e-3 * together.abs().max())
