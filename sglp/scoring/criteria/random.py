"""Random: draw the score of every combination at random.

The score is a draw between 0 and 1 that depends only on the seed and the combination.

Source: no paper; the control of every comparison.
Cost: forward `0`, backward `0`.
Use: as the result that every other criterion has to beat, over several seeds: it shows what segments and budgets
achieve alone.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.loss import Loss


class Random:
    """A draw that depends only on the seed and the set of layers; the arguments are those of every criterion."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        batches: Iterable,
        loss: Loss | None = None,
        seed: int = 0,
        random_inits: int = 1,
    ):
        self.seed = seed

    def __call__(self, kept: Iterable[int], removed: Iterable[int] = (), already_removed: Iterable[int] = ()) -> float:
        """Return a number between 0 and 1."""
        return float(np.random.default_rng([self.seed, *kept]).random())


criterion = Random
