"""Draw samples without replacement."""

import numpy as np

from sglp.errors import DataError


def draw(count: int, samples: int, seed: int, what: str) -> list[int]:
    """Draw indices of samples without replacement.

    Args:
        count: number of samples that exist.
        samples: number of samples to draw.
        seed: seed of the draw.
        what: description of the samples for the error.

    Raises:
        DataError: there are too few samples.
    """
    if samples > count:
        raise DataError(f"{samples} samples are needed, but there are only {count} {what}")
    return np.random.default_rng(seed).permutation(count)[:samples].tolist()
