"""Segmentation against ruptures, which solves the same problem by dynamic programming too, one k at a time."""

from itertools import pairwise

import numpy as np
import ruptures

from benchmarks.side_by_side import Row, in_turn
from sglp.segmentation import segmentation_table

TITLE = "Segmentation"
ROUNDS = 5


def measure(small: bool) -> list[Row]:
    """Every segmentation of 28 layers (ResNet-56) up to 8 segments, and of 110 (ResNet-218)."""
    return [_row(layers, 3 if small else 8, 1 if small else ROUNDS) for layers in ((12,) if small else (28, 110))]


def _row(layers: int, most: int, rounds: int) -> Row:
    matrix = np.random.default_rng(0).normal(size=(layers, layers))

    def ours() -> list[list[tuple[int, int]]]:
        table = segmentation_table(matrix, max_k=most)
        return [table.segments(k) for k in range(2, most + 1)]

    def theirs() -> list[list[tuple[int, int]]]:
        search = ruptures.Dynp(model="l2", jump=1, min_size=1).fit(matrix)
        ends = [[0, *search.predict(n_bkps=k - 1)] for k in range(2, most + 1)]
        return [[(first, after - 1) for first, after in pairwise(one)] for one in ends]

    if ours() != theirs():
        raise AssertionError("segmentations differ from those of ruptures")
    work = f"{layers} layers, every k from 2 to {most}, features of {layers} values"
    return Row(work, "ruptures.Dynp", in_turn(ours, theirs, rounds))
