"""Number of layers that each segment keeps.

Source: SGLP (arXiv 2410.14720) sets these numbers by hand; here they follow from one ratio or target (`sglp.target`).
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import get_args

from sglp.choices import CostKind, is_whole_number
from sglp.errors import BudgetError

Segments = Sequence[tuple[int, int]]
TARGETS = get_args(CostKind)


def allocate_budget(segments: Segments, removable: Sequence[bool], prune_ratio: float) -> list[int]:
    """Split a pruning ratio over the segments.

    The number of layers to remove is `prune_ratio` times the number of removable layers, rounded to the nearest integer
    (halves up). It is split in proportion to the segments' removable layers, by largest remainder (if remainders are
    equal, the earlier segment loses the layer). Each segment keeps at least one layer.

    Args:
        segments: inclusive (first, last) pairs that cover all layers.
        removable: for each layer, whether it can be removed.
        prune_ratio: share of the removable layers to remove, at least 0 and below 1.

    Returns:
        For each segment the number of layers to keep, including those that can't be removed.

    Raises:
        BudgetError: the ratio is not in [0, 1), no layer is removable, or the segments can't lose that many layers: the
            message gives the largest possible ratio.
    """
    return split_budget(segments, removable, layers_to_keep(removable, prune_ratio))


def layers_to_keep(removable: Sequence[bool], prune_ratio: float) -> int:
    """Compute the number of layers to keep at a pruning ratio; see `allocate_budget`."""
    if not 0 <= prune_ratio < 1:
        raise BudgetError(f"prune_ratio={prune_ratio} is impossible: it must be at least 0 and below 1")
    free = sum(removable)
    if not free:
        raise BudgetError("no layer of this network can be removed")
    return len(removable) - int(Fraction(str(prune_ratio)) * free + Fraction(1, 2))


def check_removable(layers: Sequence) -> None:
    """Check that at least one of the layers, from `find_layers`, can be removed.

    Raises:
        BudgetError: none can; the message gives the reasons for the first three layers.
    """
    if not any(layer.removable for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:3])
        raise BudgetError(f"no layer of this network can be removed ({reasons}, ...)")


def split_budget(segments: Segments, removable: Sequence[bool], keep: int) -> list[int]:
    """Split the number of layers to keep over the segments; see `allocate_budget`."""
    if keep > len(removable):
        raise BudgetError(f"{keep} layers can't be kept: this network has {len(removable)}")
    sizes = [last - first + 1 for first, last in segments]
    free = [sum(removable[first : last + 1]) for first, last in segments]
    limits = max_removable(segments, removable)
    num_removed = len(removable) - keep
    if num_removed > sum(limits):
        # The largest ratio, to three digits, that rounds to no more layers than the segments can lose.
        largest = int(Fraction(2 * sum(limits) + 1, 2 * sum(free)) * 1000 - Fraction(1, 10**6)) / 1000
        raise BudgetError(
            f"removing {num_removed} of {sum(free)} removable layers is impossible: {len(segments)} segments that keep "
            f"at least one layer each can lose {sum(limits)}; the largest possible prune_ratio is {largest:g}"
        )
    removed = _largest_remainder(num_removed, free, limits)
    return [size - count for size, count in zip(sizes, removed, strict=True)]


def max_removable(segments: Segments, removable: Sequence[bool]) -> list[int]:
    """Count the layers that each segment can lose: its removable layers, less one if the segment would be empty."""
    return [min(sum(removable[first : last + 1]), last - first) for first, last in segments]


def savings(segments: Segments, removable: Sequence[bool], costs: Sequence[int]) -> tuple[list[int], list[int]]:
    """Bound the cost that removing layers saves, for each possible number of removed layers.

    Args:
        segments, removable: see `allocate_budget`.
        costs: the cost of each layer.

    Returns:
        The least and the greatest savings; entry n is for n removed layers, from 0 to all that segments can lose.
    """
    cheapest: list[int] = []
    dearest: list[int] = []
    for (first, last), limit in zip(segments, max_removable(segments, removable), strict=True):
        inside = sorted(costs[i] for i in range(first, last + 1) if removable[i])
        cheapest += inside[:limit]
        dearest += inside[len(inside) - limit :]
    least = list(accumulate(sorted(cheapest), initial=0))
    greatest = list(accumulate(sorted(dearest, reverse=True), initial=0))
    return least, greatest


def check_target(target: Mapping[str, float], budget: Sequence[int] | None = None) -> tuple[str, float]:
    """Check a target and return its kind of cost and the share of that cost that may remain.

    Args:
        target: one of macs, parameters and latency with a share above 0 and below 1, such as {"macs": 0.5}.
        budget: number of layers that each segment keeps; excludes a target.

    Raises:
        BudgetError: the target is wrong, or there is a budget too.
    """
    valid = isinstance(target, Mapping) and len(target) == 1 and set(target) <= set(TARGETS)
    if not valid:
        raise BudgetError(
            f"target={target} is wrong: it must be one of {', '.join(TARGETS)} with a share, such as {{'macs': 0.5}}"
        )
    ((kind, share),) = target.items()
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise BudgetError(f"target: {kind}={share} is wrong: the remaining share must be above 0 and below 1")
    if budget is not None:
        raise BudgetError(
            f"score.budget={list(budget)} and a target can't both set the number of kept layers: leave one out"
        )
    return kind, share


def check_budget(segments: Segments, removable: Sequence[bool], budget: Sequence[int]) -> list[int]:
    """Check a user's budget: one number of kept layers per segment.

    Raises:
        BudgetError: there is not one number per segment, or a segment can't keep its number of layers.
    """
    if len(budget) != len(segments):
        raise BudgetError(
            f"a budget needs one number per segment, but {list(budget)} has {len(budget)} for {len(segments)} segments"
        )
    for (first, last), kept in zip(segments, budget, strict=True):
        if not is_whole_number(kept):
            raise BudgetError(f"budget={list(budget)} is wrong: {kept!r} is not a whole number")
        size = last - first + 1
        fewest = max(1, size - sum(removable[first : last + 1]))
        if not fewest <= kept <= size:
            raise BudgetError(f"segment {first}-{last} can keep {fewest} to {size} layers, but its budget is {kept}")
    return list(budget)


def _largest_remainder(total: int, weights: list[int], limits: list[int]) -> list[int]:
    """Split `total` in proportion to `weights`; what exceeds a part's limit is split over the other parts."""
    parts = [0] * len(weights)
    open_ = [i for i, limit in enumerate(limits) if limit]
    while open_:
        rest, weight = total - sum(parts), sum(weights[i] for i in open_)
        shares = {i: Fraction(rest * weights[i], weight) for i in open_}
        full = [i for i in open_ if shares[i] >= limits[i]]
        if not full:
            for i in open_:
                parts[i] = int(shares[i])
            for i in sorted(open_, key=lambda i: (-(shares[i] % 1), i))[: total - sum(parts)]:
                parts[i] += 1
            break
        for i in full:
            parts[i] = limits[i]
        open_ = [i for i in open_ if i not in full]
    return parts
