"""The loss for scoring layers and training networks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglp.running import logits_of

Loss = Callable[[Any, Any], Tensor]  # of a network's output, or its logits, and a target
IGNORED = -100  # marks a row of logits that has no target


def cross_entropy(output: Any, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of a classifier, or of a language model whose targets are the next tokens.

    Args:
        output: logits [..., classes], or a Hugging Face output object that holds them.
        target: classes [...]; `IGNORED` marks a row without a target.
        label_smoothing: share of the target that is spread evenly over all classes.
    """
    logits = logits_of(output).flatten(0, -2)
    # Half precision is too coarse for a sum over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)
