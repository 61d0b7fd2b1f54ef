"""Score which layers each segment could keep, and make the plan of the best.

Source: SGLP (arXiv 2410.14720), section III: each segment is searched on its own with GradNorm, without fine-tuning.
Here any criterion can replace GradNorm, and segments can be searched jointly; docs/chosen.md says why the default
differs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from torch import nn
from tqdm import tqdm

from sglp.budget import check_budget
from sglp.choices import Search
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.scores import LayerScore, SetScore
from sglp.scoring.beam import choose_widths, evaluations
from sglp.scoring.beam import search as search_sets
from sglp.scoring.criteria.reconstruction_error import ReconstructionError
from sglp.scoring.joint import search_jointly

SEARCH: Search = "joint"  # the default

Score = Callable[[Sequence[int], Sequence[int], Sequence[int]], float]  # of kept, removed, already_removed


def score_combinations(
    model: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    budget: Sequence[int],
    batches: Iterable,
    *,
    criterion: Callable = ReconstructionError,
    search: Search = SEARCH,
    loss: Loss = cross_entropy,
    seed: int = 0,
    random_inits: int = 1,
    max_combinations: int = 1000,
    max_evaluations: int = 5000,
    beam_width: int = 4,
) -> list[SetScore] | list[LayerScore]:
    """Score the combinations of layers that each segment could keep.

    Args:
        model: the trained network.
        layers: as returned by `find_layers`.
        segments: inclusive (first, last) pairs, as returned by `fisher_segmentation`.
        budget: number of layers that each segment keeps, as returned by `allocate_budget`; "joint" uses their sum.
        batches: pairs (inputs, target); the same ones for every combination.
        criterion: as returned by `sglp.find_criterion`, or a callable with the same signature. A criterion that scores
            a segment and not the network (see `sglp.scoring.methods`) can't be used with "joint".
        search: "independent": each segment on its own, as in the paper; "sequential": each segment in turn, without the
            layers that earlier segments have lost; "joint": one layer at a time, from the segment where the removal
            costs least (`search_jointly`), or exactly where the criterion can.
        loss, seed, random_inits: see `sglp.scoring.criteria.gradnorm.GradNorm`; a criterion uses those that it needs.
        max_combinations, max_evaluations, beam_width: see `sglp.scoring.beam.choose_widths`.

    Returns:
        The scored combinations of all segments, segment by segment, in the order of their layers. With "joint" one row
        per layer: first the removed layers, in order of removal; the score is the drop in the network's score that the
        removal causes.

    Raises:
        ScoringError: `batches` is empty, the search is unknown or can't use the criterion, or more than
            `max_evaluations` evaluations are needed.
        BudgetError: there is not one number per segment, or a segment can't keep its number of layers.
        ArchitectureError: no random network of this architecture can be made.
    """
    check_search(search, criterion)
    check_budget(segments, [layer.removable for layer in layers], budget)
    score = criterion(model, layers, batches, loss, seed, random_inits)
    if search == "joint" and hasattr(score, "solve"):
        return _solve(score, segments, sum(budget))
    if search == "joint":
        return _search_network(score, layers, segments, len(layers) - sum(budget), max_evaluations)
    return _search_segments(
        score, layers, segments, budget, search == "sequential", max_combinations, max_evaluations, beam_width
    )


def check_search(search: str, criterion: Callable) -> None:
    """Check that a search exists and can use a criterion.

    Raises:
        ScoringError: it does not exist, or can't use the criterion.
    """
    if search not in get_args(Search):
        raise ScoringError(f"search={search!r} is unknown: it must be {', '.join(get_args(Search))}")
    if search == "joint" and getattr(criterion, "of_segment", False):
        raise ScoringError(
            "search=joint compares layers across the whole network, but "
            f"{getattr(criterion, '__name__', 'this criterion')} scores one segment: "
            "use search=independent or sequential"
        )


def best_plan(layers: Sequence[Layer], scores: Iterable[SetScore | LayerScore]) -> Plan:
    """Make the plan that keeps the best set of each segment, or each layer whose row says that it is kept."""
    kept: set[int] = set()
    for row in scores:
        if isinstance(row, LayerScore):
            kept.update([row.layer] * row.kept)
        elif row.best:
            kept.update(row.kept)
    return Plan.without(layers, set(range(len(layers))) - kept)


def _search_network(
    score: Score, layers: Sequence[Layer], segments: Sequence[tuple[int, int]], num_removed: int, max_evaluations: int
) -> list[LayerScore]:
    segment_of = [segment for segment, (first, last) in enumerate(segments) for _ in range(first, last + 1)]

    def score_without(segment: int, removed: list[int]) -> float:
        inside = range(segments[segment][0], segments[segment][1] + 1)
        already_removed = [i for i in removed if i not in inside]
        return score([i for i in inside if i not in removed], [i for i in removed if i in inside], already_removed)

    removable = [layer.removable for layer in layers]
    removed, drops = search_jointly(segments, removable, num_removed, score_without, max_evaluations)
    kept = [i for i in range(len(layers)) if i not in removed]
    return [LayerScore(segment_of[i], i, drops.get(i, 0.0), "joint", i not in removed) for i in (*removed, *kept)]


def _solve(score: Any, segments: Sequence[tuple[int, int]], keep: int) -> list[LayerScore]:
    """Let a criterion find the best plan; a layer's score is what its removal alone costs."""
    kept, alone = score.solve(segments, keep)
    return [
        LayerScore(segment, i, alone[i], "exact", i in kept)
        for segment, (first, last) in enumerate(segments)
        for i in range(first, last + 1)
    ]


def _search_segments(
    score: Score,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    budget: Sequence[int],
    sequential: bool,
    max_combinations: int,
    max_evaluations: int,
    beam_width: int,
) -> list[SetScore]:
    fixed = [[i for i in range(first, last + 1) if not layers[i].removable] for first, last in segments]
    free = [[i for i in range(first, last + 1) if layers[i].removable] for first, last in segments]
    sizes = [kept - len(always_kept) for kept, always_kept in zip(budget, fixed, strict=True)]
    problems = [(len(candidates), size) for candidates, size in zip(free, sizes, strict=True)]
    widths = choose_widths(problems, max_combinations, max_evaluations, beam_width)
    total = sum(evaluations(*problem, width) for problem, width in zip(problems, widths, strict=True))
    rows: list[SetScore] = []
    removed_so_far: list[int] = []
    with tqdm(total=total, desc="combinations", unit="", disable=None) as bar:
        for segment, width in enumerate(widths):
            always_kept = fixed[segment]
            candidates = free[segment]
            already_removed = tuple(removed_so_far)

            def score_set(
                chosen: tuple[int, ...],
                always_kept: list[int] = always_kept,
                candidates: list[int] = candidates,
                already_removed: tuple[int, ...] = already_removed,
            ) -> float:
                bar.update()
                removed = [i for i in candidates if i not in chosen]
                return score(sorted((*always_kept, *chosen)), removed, already_removed)

            scores = search_sets(candidates, sizes[segment], score_set, width)
            best = max(scores, key=scores.__getitem__)
            kind = "exhaustive" if width is None else f"beam {width}"
            rows += [
                SetScore(segment, tuple(sorted((*always_kept, *chosen))), value, kind, chosen == best)
                for chosen, value in scores.items()
            ]
            if sequential:
                removed_so_far += [i for i in candidates if i not in best]
    return rows
