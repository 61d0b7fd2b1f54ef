"""The size of the residual stream before and after each gap in the dense network."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglp.batches import padding_mask
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.errors import ScoringError
from sglp.layer import module_paths
from sglp.reconstruction.rows import row_weights, rows
from sglp.running import call, first_tensor, hooked_eval


class Gap(NamedTuple):
    """Consecutive removed layers: the last kept layer before them ("" if there is none), the first, and the last."""

    before: str
    first: str
    last: str


class Scale(NamedTuple):
    """How the stream grows in a gap.

    Attributes:
        value: mean over samples and channels of mean |x after| / mean |x before|; the inner means are over tokens.
        before, after: mean relative squared error, on held-out samples, of the activation before the gap as an
            estimate of the one after it, without and with the scale.
    """

    value: float
    before: float
    after: float


def gaps_of(order: Sequence[str], removed: set[str]) -> list[Gap]:
    """List the gaps of a plan in order of depth."""
    gaps: list[Gap] = []
    before, inside = "", False
    for name in order:
        if name not in removed:
            before, inside = name, False
        elif inside:
            gaps[-1] = gaps[-1]._replace(last=name)
        else:
            gaps.append(Gap(before, name, name))
            inside = True
    return gaps


def scales_of(dense: nn.Module, gaps: Sequence[Gap], inputs: Sequence, fitting: int) -> list[Scale]:
    """Measure all gaps in one pass.

    Args:
        dense: the dense network, a transformer whose layers read and return [samples, tokens, channels].
        gaps: of the plan.
        inputs: of all batches, on the network's device.
        fitting: how many of them the scales are computed from; the others measure errors.

    Raises:
        ScoringError: a scale is not finite, or not above 0.
    """
    sums = torch.zeros(len(gaps), 6, dtype=torch.float64)
    entering: dict[int, Tensor] = {}
    mask: Tensor | None = None
    held = False

    def enter(number: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        entering[number] = first_tensor(args or kwargs).to(torch.float64, copy=True)  # a layer may work in place

    def leave(number: int, module: nn.Module, args: tuple, output) -> None:
        before, after = entering.pop(number), first_tensor(output).double()
        if held:
            sums[number, 2:] += _errors(before, after, mask)
        else:
            sums[number, :2] += _ratios(before, after, mask)

    handles = []
    for number, gap in enumerate(gaps):
        first, last = module_paths(gap.first)[0], module_paths(gap.last)[-1]
        handles.append(dense.get_submodule(first).register_forward_pre_hook(partial(enter, number), with_kwargs=True))
        handles.append(dense.get_submodule(last).register_forward_hook(partial(leave, number)))
    with hooked_eval(dense, handles):
        for index, one in enumerate(inputs):
            mask, held = padding_mask(one), index >= fitting
            call(dense, one)
    return [_scale(gap, *values) for gap, values in zip(gaps, all_reduce_sum(sums).tolist(), strict=True)]


def _ratios(before: Tensor, after: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum of all samples' and channels' ratios, and their number; a channel of zeros has none."""
    counting = torch.ones(before.shape[:2], device=before.device) if mask is None else mask
    sizes = [(activation.abs() * counting[..., None]).sum(dim=1) for activation in (before, after)]
    defined = sizes[0] > 0
    return torch.stack([(sizes[1][defined] / sizes[0][defined]).sum(), defined.sum()]).cpu()


def _errors(before: Tensor, after: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weighted sums of squares of `before`, of products, and of squares of `after`, and the rows counted."""
    x, y = rows(before, False), rows(after, False)
    weights = row_weights(y, mask).double()
    products = [((a * b).sum(dim=1) * weights).sum() for a, b in ((x, x), (x, y), (y, y))]
    return torch.stack([*products, (weights > 0).sum()]).cpu()


def _scale(gap: Gap, ratios: float, defined: float, xx: float, xy: float, yy: float, count: float) -> Scale:
    value = ratios / defined if defined else math.nan
    if not (math.isfinite(value) and value > 0):
        raise ScoringError(
            f"the mean activation after {gap.last} is {value} times the one before {gap.first}: it must be finite"
        )
    before, after = ((scale * (scale * xx - 2 * xy) + yy) / max(count, 1) for scale in (1.0, value))
    return Scale(value, before, after)
