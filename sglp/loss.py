"""The loss that layers are scored with and networks are trained with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sglp.running import logits_of

Loss = Callable[[object, object], Tensor]
IGNORED = -100  # the target of a row of logits that has none


def cross_entropy(output, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a classifier: of samples, or of tokens where every token's target is the next one.

    Args:
        output: logits [..., classes], or what transformers returns around them.
        target: classes [...], `IGNORED` where a row has none.
        label_smoothing: share of the target that all classes get alike.
    """
    logits = logits_of(output).flatten(0, -2)
    # In half precision a sum over a vocabulary is too coarse.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)
