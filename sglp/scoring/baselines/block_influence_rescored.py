"""Block influence, rescored: repeatedly remove the layer that rotates its input least.

The score is that of `block_influence`, 1 - mean cosine between a layer's input and output, in the network without all
layers removed before. In scores.csv the removed layers come first, in order of removal; a layer's score is the one from
the last time that it was scored.

Source: Prune&Comp (arXiv 2507.18212), where it is one of the compared methods; block influence is that of ShortGPT
(arXiv 2403.03853).
Cost: forward `B * r + 1`, backward `0`. One of the passes uses a single sample.
Use: instead of `block_influence` for more than a few layers: a layer whose input has changed because earlier layers are
removed gets a score of its own. It remains a measure of a single layer, and never puts a layer back.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch import nn

from sglp.batches import at_least_one, inputs_of
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.baselines.block_influence import influences
from sglp.scoring.ranking import check_keep, remove_one_by_one
from sglp.surgery.bypass import Bypass


def block_influence_rescored(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Repeatedly remove the layer with the smallest block influence.

    The arguments are those of every method, see `sglp.scoring.methods`; the rows are those of `remove_one_by_one`.

    Raises:
        ScoringError: `batches` is empty, or a score is not finite.
    """
    check_keep(layers, keep)
    batches = list(at_least_one(batches))
    bypass = Bypass(network, layers, inputs_of(batches[0]))

    @lru_cache(maxsize=1)  # one pass scores all layers
    def without(removed: tuple[int, ...]) -> list[float]:
        left = [replace(layer, removable=layer.removable and i not in removed) for i, layer in enumerate(layers)]
        with bypass.without(removed):
            scores = influences(network, left, batches)
        for layer, score in zip(layers, scores, strict=True):
            if not math.isfinite(score):
                raise ScoringError(f"the block influence of layer {layer.name} is {score}: it must be finite")
        return scores

    def influence(removed: list[int]) -> float:
        *before, last = removed
        return without(tuple(before))[last]

    return remove_one_by_one(layers, influence, keep, "block influence rescored")
