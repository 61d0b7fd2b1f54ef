"""ReplaceMe: a linear transform of a layer's last linear map replaces the removed layers that follow.

Source: ReplaceMe (arXiv 2505.02819), least squares without a regularisation term.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sglp.distributed.all_reduce import all_reduce_sum
from sglp.reconstruction.affine import weight_of


def transform(batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return T = (M'M)^-1 M'(D - Y + M), with the pseudo-inverse where M'M is singular.

    M T is the least squares fit of what the map should have returned: Y - M + M T is as near to D as possible. Sums are
    taken over rows, so that batches stream, and processes add theirs.

    Args:
        batches: (M, D - Y, w) for every batch: outputs of the map [rows, channels], targets minus the layer's outputs
            [rows, channels], and [rows] weights, of which only 0 matters: these rows do not count.

    Returns:
        [channels, channels] float64.
    """
    sums: Tensor | None = None
    for outputs, residuals, weights in batches:
        counting = weights > 0
        outputs, residuals = outputs[counting].double(), residuals[counting].double()
        added = torch.stack([outputs.T @ outputs, outputs.T @ (residuals + outputs)])
        sums = added if sums is None else sums + added
    if sums is None:
        raise ValueError("a transform needs a batch")
    normal, right = all_reduce_sum(sums)
    return torch.linalg.pinv(normal, hermitian=True) @ right


def fold(linear: nn.Module, change: Tensor) -> None:
    """Multiply a linear map's outputs by T, in place: W becomes T'W, and its bias b becomes T'b."""
    bias = getattr(linear, "bias", None)
    for value in (weight_of(linear), *([] if bias is None else [bias.data])):
        value.copy_((change.T @ value.double()).to(value.dtype))
