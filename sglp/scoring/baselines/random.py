"""Random: which layers go is drawn.

Every set of so many removable layers is as likely as any other. The score of a layer is its draw; the lowest go.

Source: no paper; the control of every comparison.
Cost: forward `0`, backward `0`.
Use: as what any other method has to beat, over several seeds. A method that does not beat it knows nothing about the
network that a draw does not.
"""

import numpy as np

from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def random(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Draw the layers that go uniformly among the removable ones; the score is the draw.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    draws = np.random.default_rng(seed).random(len(layers)).tolist()
    return keep_best(layers, draws, keep, "random")
