"""Draw samples without replacement."""

import numpy as np

from sglp.errors import DataError


def draw(count: int, samples: int, seed: int, what: str) -> list[int]:
    """Numbers of samples, drawn without replacement.

    Args:
        count: how many there are.
        samples: how many are wanted.
        seed: of the draw.
        what: they are, for the error.

    Raises:
        DataError: there are fewer.
    """
    if samples > count:
        raise DataError(f"{samples} samples are asked for, but there are only {count} {what}")
    return np.random.default_rng(seed).permutation(count)[:samples].tolist()
