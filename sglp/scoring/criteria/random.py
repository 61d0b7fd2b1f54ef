"""Random: any combination is as good as another.

The score is a draw from 0 to 1, which depends on the seed and the combination alone.

Source: no paper; the control of every comparison.
Cost: forward `0`, backward `0`.
Use: as what any other criterion has to beat, over several seeds: it shows what segments and budgets do alone.
"""

from collections.abc import Iterable

import numpy as np


class Random:
    """Scores sets of layers by a draw, which depends on the seed and the set alone; arguments as of all criteria."""

    def __init__(self, network, layers, batches, loss=None, seed: int = 0, random_inits: int = 1):
        self.seed = seed

    def __call__(self, kept: Iterable[int], gone: Iterable[int] = (), before: Iterable[int] = ()) -> float:
        """A number from 0 to 1."""
        return float(np.random.default_rng([self.seed, *kept]).random())


criterion = Random
