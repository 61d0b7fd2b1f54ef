"""Scores which layers of each segment to keep, and makes the plan of the best.

Source: SGLP (arXiv 2410.14720), section III: every segment on its own by GradNorm, no fine-tuning. Here any criterion
can take GradNorm's place, and segments can share what goes; docs/chosen.md says why the default is another one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from torch import nn
from tqdm import tqdm

from sglp.choices import Search
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.scores import LayerScore, SetScore
from sglp.scoring.beam import choose_widths, evaluations
from sglp.scoring.beam import search as search_sets
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.scoring.joint import search_jointly

SEARCH: Search = "joint"  # the default


def score_combinations(
    model: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    budget: Sequence[int],
    batches: Iterable,
    *,
    criterion: Callable = FittedLoss,
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
        layers: what `find_layers` found.
        segments: inclusive (first, last), as `fisher_segmentation` gives them.
        budget: how many layers each segment keeps, as `allocate_budget` gives them; "joint" takes their sum.
        batches: pairs (inputs, target); the same ones for every combination.
        criterion: what is asked of a combination; one of `sglp.find_criterion`, or a callable like them. One that
            scores a segment and not the network (see `sglp.scoring.methods`) can't be asked with "joint".
        search: "independent", every segment on its own, as in the paper; "sequential", each with the layers gone that segments
            before it have lost; or "joint", layer by layer, from the segment
            that can spare one most (`search_jointly`).
        loss, seed, random_inits: see `sglp.scoring.criteria.gradnorm.GradNorm`; a criterion takes of them what it needs.
        max_combinations, max_evaluations, beam_width: see `sglp.scoring.beam.choose_widths`.

    Returns:
        The scored combinations of all segments, segment by segment, in the order of their layers. Of "joint" a row a
        layer: first those that go, in their order; the score is by how much the network's falls when it goes.

    Raises:
        ScoringError: no batch, there is no such search, the criterion can't be asked so, or more than `max_evaluations`
            are needed.
        ArchitectureError: no random network of this architecture can be made.
    """
    check_search(search, criterion)
    scorer = criterion(model, layers, batches, loss, seed, random_inits)
    if search == "joint":
        return _joint(scorer, layers, segments, len(layers) - sum(budget), max_evaluations)
    return _each(
        scorer, layers, segments, budget, search == "sequential", max_combinations, max_evaluations, beam_width
    )


def check_search(search: str, criterion: Callable) -> None:
    """Check that there is such a search, and that it can ask a criterion.

    Raises:
        ScoringError: there is none, or it can't.
    """
    if search not in get_args(Search):
        raise ScoringError(f"search={search!r} is unknown: it must be {', '.join(get_args(Search))}")
    if search == "joint" and getattr(criterion, "of_segment", False):
        raise ScoringError(
            "search=joint compares layers all over the network, but "
            f"{getattr(criterion, '__name__', 'this criterion')} scores one segment: use search=independent or sequential"
        )


def best_plan(layers: Sequence[Layer], scores: Iterable[SetScore | LayerScore]) -> Plan:
    """The plan that keeps every segment's best set, or every layer whose score says that it is kept."""
    kept: set[int] = set()
    for row in scores:
        if isinstance(row, LayerScore):
            kept.update([row.layer] * row.kept)
        elif row.best:
            kept.update(row.kept)
    return Plan.without(layers, set(range(len(layers))) - kept)


def _joint(scorer, layers, segments, goes: int, max_evaluations: int) -> list[LayerScore]:
    segment_of = [number for number, (first, last) in enumerate(segments) for _ in range(first, last + 1)]

    def score(number: int, gone: list[int]) -> float:
        inside = range(segments[number][0], segments[number][1] + 1)
        before = [i for i in gone if i not in inside]
        return scorer([i for i in inside if i not in gone], [i for i in gone if i in inside], before)

    gone, falls = search_jointly(segments, [layer.removable for layer in layers], goes, score, max_evaluations)
    stay = [i for i in range(len(layers)) if i not in gone]
    return [LayerScore(segment_of[i], i, falls.get(i, 0.0), "joint", i not in gone) for i in (*gone, *stay)]


def _each(
    scorer, layers, segments, budget, sequential: bool, max_combinations: int, max_evaluations: int, beam_width: int
) -> list[SetScore]:
    fixed, free = [], []
    for first, last in segments:
        fixed.append([i for i in range(first, last + 1) if not layers[i].removable])
        free.append([i for i in range(first, last + 1) if layers[i].removable])
    sizes = [kept - len(always) for kept, always in zip(budget, fixed, strict=True)]
    problems = [(len(candidates), size) for candidates, size in zip(free, sizes, strict=True)]
    widths = choose_widths(problems, max_combinations, max_evaluations, beam_width)
    most = sum(evaluations(*problem, width) for problem, width in zip(problems, widths, strict=True))
    scored: list[SetScore] = []
    before: list[int] = []
    with tqdm(total=most, desc="combinations", unit="", disable=None) as bar:
        for number, width in enumerate(widths):
            always, candidates, out = fixed[number], free[number], tuple(before)

            def score(chosen: tuple[int, ...], always=always, candidates=candidates, out=out) -> float:
                bar.update()
                gone = [i for i in candidates if i not in chosen]
                return scorer(sorted((*always, *chosen)), gone, out)

            scores = search_sets(candidates, sizes[number], score, width)
            best = max(scores, key=scores.get)
            how = "exhaustive" if width is None else f"beam {width}"
            scored += [
                SetScore(number, tuple(sorted((*always, *chosen))), value, how, chosen == best)
                for chosen, value in scores.items()
            ]
            if sequential:
                before += [i for i in candidates if i not in best]
    return scored
