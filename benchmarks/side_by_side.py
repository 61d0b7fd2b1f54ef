"""Time two versions of the same work alternately, so that their ratio also holds on a shared machine."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Timing(NamedTuple):
    """Times of both versions, and their ratio.

    Attributes:
        ours, other: median seconds.
        ratio: the median of other / ours over the rounds.
        low, high: the smallest and the largest other / ours.
    """

    ours: float
    other: float
    ratio: float
    low: float
    high: float


class Row(NamedTuple):
    """A row of the page.

    Attributes:
        work: the work that was timed.
        other: the version that ours is compared with.
        timing: times of both versions.
        goal: the ratio to reach, or None.
        note: other measurements, and the cause if the goal is missed.
    """

    work: str
    other: str
    timing: Timing
    goal: float | None = None
    note: str = ""


def in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> Timing:
    """Time both alternately for `rounds` rounds, after one round of warm-up."""
    for work in (ours, other):
        work()
    seconds = [(_seconds(ours), _seconds(other)) for _ in range(rounds)]
    ratios = [theirs / own for own, theirs in seconds]
    own, theirs = (median(column) for column in zip(*seconds, strict=True))
    return Timing(own, theirs, median(ratios), min(ratios), max(ratios))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
