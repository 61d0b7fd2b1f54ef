"""Random: remove layers drawn at random.

Every set of removable layers of the required size is equally likely. The score of a layer is its draw; the layers with
the lowest scores are removed.

Source: no paper; the control of every comparison.
Cost: forward `0`, backward `0`.
Use: as the result that every other method has to beat, over several seeds. A method that does not beat it has learned
nothing useful about the network.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def random(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Draw the layers to remove uniformly from the removable ones; the score is the draw.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    draws = np.random.default_rng(seed).random(len(layers)).tolist()
    return keep_best(layers, draws, keep, "random")
