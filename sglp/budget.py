"""How many layers each segment keeps.

Source: SGLP (arXiv 2410.14720) sets these counts by hand; here one ratio sets them all, or a target (`sglp.target`).
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import get_args

from sglp.choices import CostKind
from sglp.errors import BudgetError

Segments = Sequence[tuple[int, int]]
TARGETS = get_args(CostKind)


def allocate_budget(segments: Segments, removable: Sequence[bool], prune_ratio: float) -> list[int]:
    """Split one pruning ratio over the segments.

    The number of layers that go is `prune_ratio` times the number of removable layers, rounded to the nearest (halves
    up). Each segment gives its share of them, in proportion to its removable layers, by largest remainder (the
    earlier segment where remainders are equal), and keeps at least one layer. Layers that can't go count as kept.

    Args:
        segments: inclusive (first, last) pairs that cover all layers.
        removable: for every layer whether it can go.
        prune_ratio: share of the removable layers that goes, at least 0 and below 1.

    Returns:
        For every segment the number of layers that stay, those that can't go included.

    Raises:
        BudgetError: the ratio is not in [0, 1), nothing is removable, or the segments can't give so many layers: the
            message says the largest ratio that they can.
    """
    return split_budget(segments, removable, layers_to_keep(removable, prune_ratio))


def layers_to_keep(removable: Sequence[bool], prune_ratio: float) -> int:
    """How many of all layers stay at a pruning ratio; see `allocate_budget`."""
    if not 0 <= prune_ratio < 1:
        raise BudgetError(f"prune_ratio={prune_ratio} is impossible: it must be at least 0 and below 1")
    free = sum(removable)
    if not free:
        raise BudgetError("no layer of this network can be removed")
    return len(removable) - int(Fraction(str(prune_ratio)) * free + Fraction(1, 2))


def check_removable(layers: Sequence) -> None:
    """Refuse layers, as `find_layers` finds them, of which none can go.

    Raises:
        BudgetError: the message has the reasons of the first ones.
    """
    if not any(layer.removable for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:3])
        raise BudgetError(f"no layer of this network can be removed ({reasons}, ...)")


def split_budget(segments: Segments, removable: Sequence[bool], keep: int) -> list[int]:
    """Split a number of layers that stay over the segments; see `allocate_budget`."""
    if keep > len(removable):
        raise BudgetError(f"{keep} layers can't stay: this network has {len(removable)}")
    sizes = [last - first + 1 for first, last in segments]
    free = [sum(removable[first : last + 1]) for first, last in segments]
    most = most_to_go(segments, removable)
    goes = len(removable) - keep
    if goes > sum(most):
        # The largest ratio, to three digits, that rounds to no more layers than the segments can give.
        largest = int(Fraction(2 * sum(most) + 1, 2 * sum(free)) * 1000 - Fraction(1, 10**6)) / 1000
        raise BudgetError(
            f"{goes} of {sum(free)} removable layers are to go, but {len(segments)} segments that keep a layer each "
            f"can give {sum(most)}: the largest possible prune_ratio is {largest:g}"
        )
    removed = _largest_remainder(goes, free, most)
    return [size - count for size, count in zip(sizes, removed, strict=True)]


def most_to_go(segments: Segments, removable: Sequence[bool]) -> list[int]:
    """How many layers each segment can give: those that can go, but one where it would lose all."""
    return [min(sum(removable[first : last + 1]), last - first) for first, last in segments]


def savings(segments: Segments, removable: Sequence[bool], costs: Sequence[int]) -> tuple[list[int], list[int]]:
    """The least and the most that can be saved when so many layers go, from none to as many as segments can give.

    Args:
        segments, removable: see `allocate_budget`.
        costs: what every layer costs.
    """
    cheap, dear = [], []
    for (first, last), most in zip(segments, most_to_go(segments, removable), strict=True):
        inside = sorted(costs[i] for i in range(first, last + 1) if removable[i])
        cheap += inside[:most]
        dear += inside[len(inside) - most :]
    return list(accumulate(sorted(cheap), initial=0)), list(accumulate(sorted(dear, reverse=True), initial=0))


def check_target(target: Mapping[str, float], budget: Sequence[int] | None = None) -> tuple[str, float]:
    """What a target is of, and the share of the dense network that may be left.

    Args:
        target: one of macs, parameters and latency with its share, above 0 and below 1, as {"macs": 0.5}.
        budget: how many layers each segment keeps; there can't be both.

    Raises:
        BudgetError: it is no such target, or there is a budget too.
    """
    known = isinstance(target, Mapping) and len(target) == 1 and set(target) <= set(TARGETS)
    if not known:
        raise BudgetError(
            f"target={target} is wrong: it must be one of {', '.join(TARGETS)} with a share, as macs: 0.5"
        )
    ((of, share),) = target.items()
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise BudgetError(f"target: {of}={share} is wrong: the share that is left must be above 0 and below 1")
    if budget is not None:
        raise BudgetError(
            f"score.budget={list(budget)} and a target can't both say how many layers stay: leave one out"
        )
    return of, share


def check_budget(segments: Segments, removable: Sequence[bool], budget: Sequence[int]) -> list[int]:
    """Check a budget that a user wrote: one number of kept layers a segment.

    Raises:
        BudgetError: there is not one number a segment, or a segment can't keep so many or so few.
    """
    if len(budget) != len(segments):
        raise BudgetError(
            f"a budget has one number a segment, but {list(budget)} has {len(budget)} for {len(segments)}"
        )
    for (first, last), kept in zip(segments, budget, strict=True):
        size = last - first + 1
        fewest = max(1, size - sum(removable[first : last + 1]))
        if not fewest <= kept <= size:
            raise BudgetError(f"segment {first}-{last} can keep {fewest} to {size} layers, but its budget is {kept}")
    return list(budget)


def _largest_remainder(goes: int, free: list[int], most: list[int]) -> list[int]:
    """Split `goes` in proportion to `free`, no part above `most`; what a full part can't take goes to the others."""
    removed = [0] * len(free)
    open_ = [i for i, room in enumerate(most) if room]
    while open_:
        rest, weight = goes - sum(removed), sum(free[i] for i in open_)
        shares = {i: Fraction(rest * free[i], weight) for i in open_}
        full = [i for i in open_ if shares[i] >= most[i]]
        if not full:
            for i in open_:
                removed[i] = int(shares[i])
            for i in sorted(open_, key=lambda i: (-(shares[i] % 1), i))[: goes - sum(removed)]:
                removed[i] += 1
            break
        for i in full:
            removed[i] = most[i]
        open_ = [i for i in open_ if i not in full]
    return removed
