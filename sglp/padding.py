"""Activations without padding: tokens that the attention mask hides count nowhere.

The same texts then give the same numbers, however far they are padded, with which token, and on which side.
"""

import torch
from torch import Tensor

Tokens = tuple[Tensor, Tensor]  # [samples, tokens, channels], and which of them count, bool [samples, tokens]


def tokens_of(activation: Tensor, mask: Tensor | None, transposed: bool = False) -> Tokens | None:
    """Return an activation as tokens with their mask, or None if there is no mask or it does not fit.

    Args:
        activation: [samples, tokens, channels], [tokens, samples, channels] or [samples, channels, tokens].
        mask: from `padding_mask`.
        transposed: whether the tokens come first, where samples and tokens are equally many.
    """
    if mask is None or activation.ndim != 3:
        return None
    mask = mask.to(activation.device)
    samples, tokens = mask.shape
    first, second, third = activation.shape
    if (first, second) == (samples, tokens):
        return activation.transpose(0, 1) if transposed and samples == tokens else activation, mask
    if (first, second) == (tokens, samples):
        return activation.transpose(0, 1), mask
    return (activation.transpose(1, 2), mask) if (first, third) == (samples, tokens) else None


def mask_of_rows(activation: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return the mask in the layout of an activation's first two dimensions, or None if it does not fit.

    Args:
        activation: [samples, tokens, ...], [tokens, samples, ...], or one row for each token, sample by sample.
        mask: from `padding_mask`.
    """
    if mask is None or activation.ndim < 2:
        return None
    mask = mask.to(activation.device)
    if activation.ndim == 2:
        return mask.flatten() if len(activation) == mask.numel() else None
    if activation.shape[:2] == mask.shape:
        return mask
    return mask.T if activation.shape[:2] == mask.T.shape else None


def visible_rows(activation: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows [rows, channels] of all tokens that count, or of all tokens or samples if no mask fits."""
    if (found := tokens_of(activation, mask)) is not None:
        tokens, visible = found
        return tokens[visible]
    shown = mask_of_rows(activation, mask) if activation.ndim == 2 else None
    if shown is not None:
        return activation[shown]
    return activation.flatten(0, 1) if activation.ndim == 3 else activation.flatten(1)


def mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [samples, channels] over the tokens that count, in float64; 0 for a sample without any."""
    total = tokens.masked_fill(~mask[..., None], 0).sum(dim=1, dtype=torch.float64)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1)


def last_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the last token that counts [samples, channels]; 0 for a sample without any."""
    last = (mask * torch.arange(1, 1 + mask.shape[1], device=mask.device)).amax(dim=1) - 1
    chosen = tokens[torch.arange(len(tokens), device=mask.device), last.clamp_min(0)]
    return chosen.masked_fill(last[:, None] < 0, 0)


def moved_to_the_front(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the tokens that count, in their order, followed by zeros: [samples, most tokens of a sample, channels]."""
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    longest = int(mask.sum(dim=1).max())
    order = order[:, :longest, None]
    shown = mask.gather(1, order[..., 0])[..., None]
    return tokens.gather(1, order.expand(-1, -1, tokens.shape[2])).masked_fill(~shown, 0)
