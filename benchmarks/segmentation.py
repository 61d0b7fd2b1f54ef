"""Segmentation against ruptures, which also solves the problem by dynamic programming, but one k at a time."""

from itertools import pairwise

import numpy as np
import ruptures

from benchmarks.side_by_side import Row, in_turn
from sglp.segmentation import segmentation_table

TITLE = "Segmentation"
ROUNDS = 5


def measure(small: bool) -> list[Row]:
    """Time all segmentations of 28 layers (ResNet-56) and 110 layers (ResNet-218) into up to 8 segments."""
    return [_row(layers, 3 if small else 8, 1 if small else ROUNDS) for layers in ((12,) if small else (28, 110))]


def _row(layers: int, max_k: int, rounds: int) -> Row:
    matrix = np.random.default_rng(0).normal(size=(layers, layers))

    def ours() -> list[list[tuple[int, int]]]:
        table = segmentation_table(matrix, max_k=max_k)
        return [table.segments(k) for k in range(2, max_k + 1)]

    def theirs() -> list[list[tuple[int, int]]]:
        search = ruptures.Dynp(model="l2", jump=1, min_size=1).fit(matrix)
        ends = [[0, *search.predict(n_bkps=k - 1)] for k in range(2, max_k + 1)]
        return [[(first, after - 1) for first, after in pairwise(bounds)] for bounds in ends]

    if ours() != theirs():
        raise AssertionError("the segmentations differ from those of ruptures")
    work = f"{layers} layers, every k from 2 to {max_k}, features of {layers} values"
    return Row(work, "ruptures.Dynp", in_turn(ours, theirs, rounds))
