"""Scores which layers of each segment to keep, and makes the plan of the best.

Source: SGLP (arXiv 2410.14720), section III: every segment on its own by GradNorm, no fine-tuning. Here any criterion
can take GradNorm's place, and segments can be taken one after another, each on the network that those before have left:
that, with the loss on calibration data, is the default; docs/results.md has the reasons.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from tqdm import tqdm

from sglp.criteria.loss import CalibrationLoss
from sglp.layers import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.search import choose_widths, evaluations, search


@dataclass(frozen=True)
class Combination:
    """A set of layers that one segment could keep.

    Attributes:
        segment: number of the segment.
        kept: numbers of the layers that stay, those that can't go included, in order.
        score: the higher the better.
        search: "exhaustive", or "beam" with its width, as "beam 4"; of a rival its name.
        best: whether it is the segment's best (the first of equal ones).
    """

    segment: int
    kept: tuple[int, ...]
    score: float
    search: str
    best: bool


def score_combinations(
    model: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    budget: Sequence[int],
    batches: Iterable,
    *,
    criterion: Callable = CalibrationLoss,
    sequential: bool = True,
    loss: Loss = cross_entropy,
    seed: int = 0,
    draws: int = 1,
    max_combinations: int = 1000,
    max_evaluations: int = 10_000,
    beam_width: int = 4,
) -> list[Combination]:
    """Score the combinations of layers that each segment could keep.

    Args:
        model: the trained network.
        layers: what `find_layers` found.
        segments: inclusive (first, last), as `fisher_segmentation` gives them.
        budget: how many layers each segment keeps, as `allocate_budget` gives them.
        batches: pairs (inputs, target); the same ones for every combination.
        criterion: what is asked of a combination; one of `sglp.find_criterion`, or a callable like them.
        sequential: whether a segment is scored with the layers gone that segments before it have lost.
        loss, seed, draws: see `sglp.criteria.gradnorm.GradNorm`; a criterion takes of them what it needs.
        max_combinations, max_evaluations, beam_width: see `sglp.search.choose_widths`.

    Returns:
        The scored combinations of all segments, segment by segment, in the order of their layers.

    Raises:
        ScoringError: no batch, or the search can't keep to `max_evaluations`.
        ArchitectureError: no random network of this architecture can be made.
    """
    fixed, free = [], []
    for first, last in segments:
        fixed.append([i for i in range(first, last + 1) if not layers[i].removable])
        free.append([i for i in range(first, last + 1) if layers[i].removable])
    sizes = [kept - len(always) for kept, always in zip(budget, fixed, strict=True)]
    problems = [(len(candidates), size) for candidates, size in zip(free, sizes, strict=True)]
    widths = choose_widths(problems, max_combinations, max_evaluations, beam_width)
    scorer = criterion(model, layers, batches, loss, seed, draws)
    most = sum(evaluations(*problem, width) for problem, width in zip(problems, widths, strict=True))
    scored: list[Combination] = []
    before: list[int] = []
    with tqdm(total=most, desc="combinations", unit="", disable=None) as bar:
        for number, width in enumerate(widths):
            always, candidates, out = fixed[number], free[number], tuple(before)

            def score(chosen: tuple[int, ...], always=always, candidates=candidates, out=out) -> float:
                bar.update()
                gone = [i for i in candidates if i not in chosen]
                return scorer(sorted((*always, *chosen)), gone, out)

            scores = search(candidates, sizes[number], score, width)
            best = max(scores, key=scores.get)
            how = "exhaustive" if width is None else f"beam {width}"
            scored += [
                Combination(number, tuple(sorted((*always, *chosen))), value, how, chosen == best)
                for chosen, value in scores.items()
            ]
            if sequential:
                before += [i for i in candidates if i not in best]
    return scored


def best_plan(layers: Sequence[Layer], combinations: Iterable[Combination]) -> Plan:
    """The plan that keeps every segment's best combination."""
    kept = {i for combination in combinations if combination.best for i in combination.kept}
    names = [layer.name for layer in layers]
    return Plan(
        kept=[name for i, name in enumerate(names) if i in kept],
        removed=[name for i, name in enumerate(names) if i not in kept],
    )
