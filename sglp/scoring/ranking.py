"""Plans from scores: rank all layers at once, or remove them one at a time."""

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
    """Check, before any work is done, that this number of layers can be kept.

    Raises:
        BudgetError: the number is too small or too large.
    """
    fewest = max(1, sum(not layer.removable for layer in layers))
    if not fewest <= keep <= len(layers):
        raise BudgetError(f"can't keep {keep} layers: this network can keep {fewest} to {len(layers)}")


def keep_best(
    layers: Sequence[Layer], scores: Sequence[float], keep: int, search: str
) -> tuple[Plan, list[LayerScore]]:
    """Remove the removable layers with the lowest scores until `keep` layers are left.

    Args:
        layers: as returned by `find_layers`.
        scores: one per layer; the scores of layers that can't be removed have no effect.
        keep: number of layers to keep.
        search: name of the method, for the column `search` of the rows.

    Returns:
        The plan, and one row per layer.

    Raises:
        BudgetError: see `check_keep`.
        ScoringError: a score is not finite.
    """
    check_keep(layers, keep)
    for layer, score in zip(layers, scores, strict=True):
        if not math.isfinite(score):
            raise ScoringError(f"the {search} of layer {layer.name} is {score}: it must be finite")
    ranked = sorted((i for i, layer in enumerate(layers) if layer.removable), key=lambda i: (scores[i], i))
    removed = set(ranked[: len(layers) - keep])
    rows = [LayerScore(0, i, float(scores[i]), search, i not in removed) for i in range(len(layers))]
    return best_plan(layers, rows), rows


def remove_one_by_one(
    layers: Sequence[Layer], harm: Callable[[list[int]], float], keep: int, search: str
) -> tuple[Plan, list[LayerScore]]:
    """Repeatedly remove the layer whose removal does the least harm, until `keep` layers are left.

    Args:
        layers, keep, search: see `keep_best`.
        harm: function of the indices of the removed layers; finite.

    Returns:
        The plan, and one row per layer: first the removed layers in order of removal, then the kept ones. The score is
        the harm measured when the layer was last tested: of its removal together with all layers removed before it.
        It is 0 for a layer that was never tested.

    Raises:
        BudgetError: see `check_keep`.
    """
    check_keep(layers, keep)
    candidates = [i for i, layer in enumerate(layers) if layer.removable]
    num_removed = len(layers) - keep
    scores = [0.0] * len(layers)
    removed: list[int] = []
    total = evaluations(len(candidates), len(candidates) - num_removed, 1)
    with tqdm(total=total, desc=search, unit="", disable=None) as bar:
        for _ in range(num_removed):
            harms = shared_map(lambda i: harm([*removed, i]), candidates)
            for i, value in zip(candidates, harms, strict=True):
                scores[i] = value
            bar.update(len(candidates))
            removed.append(min(candidates, key=lambda i: (scores[i], i)))
            candidates.remove(removed[-1])
    order = [*removed, *(i for i in range(len(layers)) if i not in removed)]
    rows = [LayerScore(0, i, scores[i], search, i not in removed) for i in order]
    return best_plan(layers, rows), rows
