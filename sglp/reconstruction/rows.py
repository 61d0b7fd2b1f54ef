"""Activations as rows: one row of channels for each token or position, and the weight of each row."""

import torch
from torch import Tensor, nn

from sglp.distributed.all_reduce import all_reduce_sum
from sglp.padding import mask_of_rows

FLOOR = 1e-2  # a row counts as at least this share of the mean row: a position that is all zeros has no scale


def channels_first(modules: list[nn.Module], output: Tensor) -> bool:
    """Whether a layer's output has its channels in dimension 1.

    It has where the layer contains a convolution, or batch norm, of as many dimensions. Some blocks of tokens contain
    convolutions of more dimensions, for which they rearrange the tokens.
    """
    kinds = {3: (nn.Conv1d, nn.BatchNorm1d), 4: (nn.Conv2d, nn.BatchNorm2d), 5: (nn.Conv3d, nn.BatchNorm3d)}
    transposed = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
    if output.ndim not in kinds:
        return False
    wanted = (*kinds[output.ndim], transposed[output.ndim])
    return any(isinstance(inner, wanted) for module in modules for inner in module.modules())


def rows(activation: Tensor, first: bool) -> Tensor:
    """[rows, channels] of an activation; `first` says that its channels are in dimension 1."""
    if first and activation.ndim > 2:
        activation = activation.movedim(1, -1)
    return activation.reshape(-1, activation.shape[-1])


def mask_like(mask: Tensor | None, activation: Tensor) -> Tensor | None:
    """The mask [samples, tokens] in the order of an activation's rows, which can be [tokens, samples, channels]."""
    fitting = mask_of_rows(activation, mask)
    return mask if fitting is None else fitting


def row_weights(target: Tensor, mask: Tensor | None) -> Tensor:
    """[rows] float32 weights 1 / ||target||^2, and 0 for padding.

    Tokens with huge activations would otherwise decide the fit: of a few tokens the activation is a hundred times that
    of all others.
    """
    squares = target.float().square().sum(dim=-1)
    shown = None
    if mask is not None and mask.numel() == len(squares):
        shown = mask.reshape(-1).to(squares.device) != 0
    counting = squares if shown is None else squares[shown]
    total, count = all_reduce_sum(torch.tensor([float(counting.sum()), len(counting)], dtype=torch.float64)).tolist()
    weights = 1 / squares.clamp_min(FLOOR * total / max(count, 1) + torch.finfo(torch.float32).tiny)
    return weights if shown is None else weights.masked_fill(~shown, 0)


def relative_error(output: Tensor, target: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted sum of squared distances and the number of rows that count, both to be added over batches."""
    distances = (output.float() - target.float()).square().sum(dim=-1)
    return float((distances * weights).sum()), float((weights > 0).sum())
