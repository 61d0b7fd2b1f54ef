"""Two ways to do the same work, timed in turn in one run: their ratio holds on a machine that others use too."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of both (medians), and how many times as long the other takes.

    Attributes:
        ours, other: seconds.
        ratio: the median over the rounds of other / ours; `low` and `high` are the smallest and the largest.
    """

    ours: float
    other: float
    ratio: float
    low: float
    high: float


class Row(NamedTuple):
    """A line of the page.

    Attributes:
        work: what was done.
        other: the way it is held against.
        timing: of both.
        goal: the ratio that is to be reached, or None.
        note: what else was measured, and the cause where the goal is missed.
    """

    work: str
    other: str
    timing: Timing
    goal: float | None = None
    note: str = ""


def in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> Timing:
    """Time both, one after the other, so many times; one round before that is not counted."""
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
