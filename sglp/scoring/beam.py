"""Finds the best combinations of a given size: all of them where they are few, else by beam search.

Beam search goes a layer at a time: of the best `width` sets of one level every set that lacks one layer more is
scored, and the best of those go on. It starts from all and takes layers out, as a network with few layers left tells
little about which of them matter. It can miss the optimum; scores.csv says where it was used.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import comb

from sglp.distributed.processes import shared_map
from sglp.errors import ScoringError

Score = Callable[[tuple[int, ...]], float]


def search(
    candidates: Sequence[int], size: int, score: Score, width: int | None = None
) -> dict[tuple[int, ...], float]:
    """The scores of the combinations of `size` candidates that a search meets.

    Args:
        candidates: numbers of layers.
        size: how many of them a combination has.
        score: of a combination; the higher the better.
        width: of the beam, or None for all combinations.
    """
    if width is None:
        return _scored(combinations(candidates, size), score)
    level: dict[tuple[int, ...], float] = {tuple(candidates): 0.0}
    for _ in range(len(candidates) - size):
        best = sorted(level, key=lambda chosen: (-level[chosen], chosen))[:width]
        following = {tuple(i for i in chosen if i != gone) for chosen in best for gone in chosen}
        level = _scored(sorted(following), score)
    return level


def _scored(chosen: Iterable[tuple[int, ...]], score: Score) -> dict[tuple[int, ...], float]:
    sets = list(chosen)
    return dict(zip(sets, shared_map(score, sets), strict=True))


def evaluations(count: int, size: int, width: int | None) -> int:
    """The most combinations of `size` of `count` candidates that `search` scores."""
    if width is None:
        return comb(count, size)
    level, total = 1, 0
    for step in range(count - size):
        level = min(min(level, width) * (count - step), comb(count, step + 1))
        total += level
    return total


def choose_widths(
    problems: Sequence[tuple[int, int]], max_combinations: int, max_evaluations: int, width: int
) -> list[int | None]:
    """How each segment is searched: None for all its combinations, or the width of its beam.

    Args:
        problems: for every segment (number of candidates, how many of them stay).
        max_combinations: a segment with at most so many combinations is searched exhaustively.
        max_evaluations: bound on the evaluations of all segments together; beams are narrowed to stay below it.
        width: the beam's width where the bound allows it.

    Raises:
        ScoringError: even beams of width 1 need more evaluations.
    """

    def widths(beam: int) -> list[int | None]:
        return [None if comb(*problem) <= max(max_combinations, 1) else beam for problem in problems]

    def total(beam: int) -> int:
        return sum(evaluations(*problem, w) for problem, w in zip(problems, widths(beam), strict=True))

    if total(1) > max_evaluations:
        raise ScoringError(
            f"max_evaluations={max_evaluations} is too small: with max_combinations={max_combinations} the narrowest "
            f"search needs {total(1)} evaluations"
        )
    return widths(max(w for w in range(1, width + 1) if total(w) <= max_evaluations))
