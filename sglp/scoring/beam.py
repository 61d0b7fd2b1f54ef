"""Find the best combinations of a given size: exhaustively where there are few, otherwise by beam search.

Beam search removes one layer at a time: from each of the best `width` sets of one level it derives every set with one
layer less, scores those and keeps the best. It searches backwards from the full set, because nearly empty networks give
uninformative scores. Beam search can miss the optimum; scores.csv says where it was used.
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
    """Score the combinations of `size` candidates that the search reaches.

    Args:
        candidates: indices of layers.
        size: number of candidates in a combination.
        score: function of a combination; higher is better.
        width: width of the beam, or None for all combinations.

    Returns:
        The score of each combination.
    """
    if width is None:
        return _scored(combinations(candidates, size), score)
    level: dict[tuple[int, ...], float] = {tuple(candidates): 0.0}
    for _ in range(len(candidates) - size):
        best = sorted(level, key=lambda chosen: (-level[chosen], chosen))[:width]
        smaller = {tuple(i for i in chosen if i != removed) for chosen in best for removed in chosen}
        level = _scored(sorted(smaller), score)
    return level


def _scored(sets: Iterable[tuple[int, ...]], score: Score) -> dict[tuple[int, ...], float]:
    chosen = list(sets)
    return dict(zip(chosen, shared_map(score, chosen), strict=True))


def evaluations(count: int, size: int, width: int | None) -> int:
    """Return the largest number of combinations of `size` out of `count` candidates that `search` scores."""
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
    """Choose how to search each segment: None for all its combinations, or the width of its beam.

    Args:
        problems: for each segment (number of candidates, number of candidates to keep).
        max_combinations: largest number of combinations of a segment that is searched exhaustively.
        max_evaluations: upper bound on the evaluations of all segments together; beams are narrowed to stay below it.
        width: width of the beams where the bound allows it.

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
