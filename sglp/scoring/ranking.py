"""From scores to a plan: of all layers at once, or one layer at a time."""

import math
from collections.abc import Callable, Sequence

from tqdm import tqdm

from sglp.distributed.processes import shared_map
from sglp.errors import BudgetError, ScoringError
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.beam import evaluations
from sglp.scoring.combinations import best_plan


def check_keep(layers: Sequence[Layer], keep: int) -> None:
    """Refuse what can't be kept, before any work is done.

    Raises:
        BudgetError: so many layers can't stay, or so few.
    """
    fewest = max(1, sum(not layer.removable for layer in layers))
    if not fewest <= keep <= len(layers):
        raise BudgetError(f"{keep} layers can't stay: this network can keep {fewest} to {len(layers)}")


def keep_best(
    layers: Sequence[Layer], scores: Sequence[float], keep: int, search: str
) -> tuple[Plan, list[LayerScore]]:
    """The plan that removes the removable layers of the lowest scores until `keep` layers are left.

    Args:
        layers: what `find_layers` found.
        scores: one a layer; those of layers that can't go change nothing.
        keep: how many layers stay.
        search: what the rows are to say about where they are from.

    Returns:
        The plan, and a row a layer.

    Raises:
        BudgetError: see `check_keep`.
        ScoringError: a score is not finite.
    """
    check_keep(layers, keep)
    for layer, score in zip(layers, scores, strict=True):
        if not math.isfinite(score):
            raise ScoringError(f"the {search} of layer {layer.name} is {score}: it must be finite")
    free = sorted((i for i, layer in enumerate(layers) if layer.removable), key=lambda i: (scores[i], i))
    gone = set(free[: len(layers) - keep])
    rows = [LayerScore(0, i, float(scores[i]), search, i not in gone) for i in range(len(layers))]
    return best_plan(layers, rows), rows


def remove_one_by_one(
    layers: Sequence[Layer], harm: Callable[[list[int]], float], keep: int, search: str
) -> tuple[Plan, list[LayerScore]]:
    """The plan that removes the layer whose going does least harm, again and again, until `keep` layers are left.

    Args:
        layers, keep, search: see `keep_best`.
        harm: of the absence of layers, given by their numbers; finite.

    Returns:
        The plan, and a row a layer: first those that went, in the order in which they did, then those that stay. The
        score is the harm when the layer was asked about last: of its going, with those gone that went before; and 0
        for a layer that was never asked about.

    Raises:
        BudgetError: see `check_keep`.
    """
    check_keep(layers, keep)
    left = [i for i, layer in enumerate(layers) if layer.removable]
    steps, scores = len(layers) - keep, [0.0] * len(layers)
    gone: list[int] = []
    with tqdm(total=evaluations(len(left), len(left) - steps, 1), desc=search, unit="", disable=None) as bar:
        for _ in range(steps):
            for i, found in zip(left, shared_map(lambda i: harm([*gone, i]), left), strict=True):
                scores[i] = found
            bar.update(len(left))
            gone.append(min(left, key=lambda i: (scores[i], i)))
            left.remove(gone[-1])
    order = [*gone, *(i for i in range(len(layers)) if i not in gone)]
    rows = [LayerScore(0, i, scores[i], search, i not in gone) for i in order]
    return best_plan(layers, rows), rows
