"""Random: which removable layers go is drawn uniformly. What every other method has to beat, over several seeds."""

import numpy as np

from sglp.baselines.ranking import keep_best
from sglp.plan import Plan
from sglp.scoring import Combination


def random(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[Combination]]:
    """Draw the layers that go uniformly among the removable ones; the score is the draw.

    The arguments are those of every method; see `sglp.methods`.
    """
    draws = np.random.default_rng(seed).random(len(layers)).tolist()
    return keep_best(layers, draws, keep, "random")
