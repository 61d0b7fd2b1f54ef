"""Numbers over runs: mean and spread, the Pareto front, rank correlation, how stable sets are."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Mean, sample standard deviation and standard error of n values; with one value, there is no spread (None)."""

    n: int
    mean: float
    deviation: float | None
    error: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of at least one value."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Spread(1, mean, None, None)
    deviation = float(np.std(values, ddof=1))
    return Spread(n, mean, deviation, deviation / n**0.5)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, quality) no other one beats: none is as cheap and as good, and better in one of both.

    Returns:
        Their numbers, the cheapest first; equal points are all on it.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def rank_correlation(groups: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Spearman's rank correlation inside groups, as one number.

    Ranks (the mean one for equal values) are taken within each group and centred, and Pearson's correlation is that of
    all of them; with one group, it is Spearman's rho. There is no p value: the same plans come back with every seed, so
    that groups are not independent.

    Args:
        groups: pairs of lists (x, y) of equal length.

    Returns:
        None where nothing varies.
    """
    ranked = [(_ranks(x), _ranks(y)) for x, y in groups if len(x) > 1]
    if not ranked:
        return None
    x, y = (np.concatenate(side) for side in zip(*ranked, strict=True))
    scale = float((x @ x) * (y @ y)) ** 0.5
    if scale == 0:
        return None
    return float(x @ y) / scale


def partial_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float | None:
    """Spearman's partial correlation: that of the ranks of x and y, less what the ranks of a third explain of both.

    Returns:
        None where nothing is left that varies.
    """
    ranks, third = [_ranks(values) for values in (x, y)], _ranks(given)
    scale = third @ third
    left = [values - third * (values @ third) / scale if scale else values for values in ranks]
    size = float(np.linalg.norm(left[0]) * np.linalg.norm(left[1]))
    return float(left[0] @ left[1]) / size if size > 1e-9 * len(third) else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Centred ranks; equal values get their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count - 1) / 2
    return ranks[place] - (len(values) + 1) / 2


def stability(sets: Sequence[Sequence[int]]) -> float | None:
    """The mean Jaccard similarity of every two sets, 1 for two that are empty; None for fewer than two sets."""
    pairs = [(set(a), set(b)) for a, b in combinations(sets, 2)]
    return float(np.mean([len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs])) if pairs else None


def shares(sets: Sequence[Sequence[int]], count: int) -> list[float]:
    """For each of `count` numbers the share of the sets that hold it."""
    return [sum(i in held for held in sets) / len(sets) for i in range(count)]
