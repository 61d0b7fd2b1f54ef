"""Fisher's optimal segmentation of an ordered sequence: one table gives the exact optimum for every k.

Source: SGLP (arXiv 2410.14720), section III; W. D. Fisher, "On grouping for maximum homogeneity", 1958.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from sglp.choices import Feature
from sglp.errors import SegmentationError


@dataclass(frozen=True)
class SegmentationTable:
    """The optimal segmentations of one sequence for every number of segments.

    Attributes:
        losses: [layers], `losses[k - 1]` is the smallest sum of diameters that k segments reach.
        starts: [layers, layers], `starts[k - 1, j]` is the first element of the last of the k segments that
            segment elements 0..j optimally (the smallest such start where several are optimal).
    """

    losses: np.ndarray
    starts: np.ndarray

    def segments(self, k: int) -> list[tuple[int, int]]:
        """The optimal k segments as inclusive (first, last).

        Raises:
            SegmentationError: k is not between 1 and the number of layers, or larger than the table was made for.
        """
        _check_k(k, len(self.losses))
        if not np.isfinite(self.losses[k - 1]):
            made = int(np.isfinite(self.losses).sum())
            raise SegmentationError(f"k={k} is not in this table, which was made for up to {made} segments")
        segments, last = [], len(self.losses) - 1
        for row in range(k - 1, -1, -1):
            first = int(self.starts[row, last])
            segments.append((first, last))
            last = first - 1
        return segments[::-1]


def fisher_segmentation(similarity, k: int, feature: Feature = "rows") -> list[tuple[int, int]]:
    """Cut layers into the k contiguous segments with the smallest sum of squared distances to their means.

    Args:
        similarity: [layers, layers] matrix of similarities between layers, in order of execution.
        k: number of segments, 1 to the number of layers.
        feature: what stands for a layer: "rows", its whole row of the matrix, or "row_sum", the sum of that row
            (the paper's choice).

    Returns:
        k inclusive (first, last) pairs that cover all layers in order.

    Raises:
        SegmentationError: k is impossible, the matrix is not square or not finite, or the feature is unknown.
    """
    return segmentation_table(similarity, feature, k).segments(k)


def segmentation_table(similarity, feature: Feature = "rows", max_k: int | None = None) -> SegmentationTable:
    """All optimal segmentations with up to `max_k` segments (all of them by default), in O(max_k layers^2).

    Args and errors are those of `fisher_segmentation`.
    """
    values = _features(np.asarray(similarity, dtype=np.float64), feature)
    diameter = _diameters(values)
    layers = len(values)
    rows = layers if max_k is None else min(max(max_k, 1), layers)
    starts = np.zeros((layers, layers), dtype=np.int64)
    losses = np.full(layers, np.nan)
    best = diameter[0]
    losses[0] = best[-1]
    for row in range(1, rows):
        # candidate[i, j]: the last segment is i..j, and what comes before it is optimal with one segment less.
        candidate = np.full((layers, layers), np.inf)
        candidate[row:] = best[row - 1 : layers - 1, None] + diameter[row:]
        starts[row] = candidate.argmin(axis=0)
        best = candidate.min(axis=0)
        losses[row] = best[-1]
    return SegmentationTable(losses, starts)


def equal_segments(layers: int, k: int) -> list[tuple[int, int]]:
    """Cut layers into k contiguous segments of as equal a size as can be, whatever their similarity.

    Raises:
        SegmentationError: k is not between 1 and the number of layers.
    """
    _check_k(k, layers)
    borders = [round(i * layers / k) for i in range(k + 1)]
    return [(first, after - 1) for first, after in pairwise(borders)]


def choose_k(losses, share: float = 0.05) -> int:
    """The largest k whose last cut still takes at least `share` of the loss of one segment (at least 1).

    Source: the rule of SGLP's published code (5 %), measured against the loss of a single segment instead of the
    loss before the cut, so that cuts of noise near a loss of zero do not count.
    """
    losses = np.asarray(losses, dtype=np.float64)
    drops = losses[:-1] - losses[1:]
    worthwhile = np.flatnonzero(drops >= share * losses[0]) if losses[0] > 0 else []
    return int(worthwhile[-1]) + 2 if len(worthwhile) else 1


def number_of_segments(k: int | Literal["auto"], losses, method: str = "sglp", share: float = 0.05) -> int:
    """How many segments a method gets: k, or for "auto" what `choose_k` says; one if it uses none."""
    # So that k never runs such a method again.
    if not uses_segments(method):
        return 1
    return choose_k(losses, share) if k == "auto" else k


def uses_segments(method: str) -> bool:
    """Whether a method of this name reads segments: "sglp", and maybe a user's own, but no baseline."""
    return method == "sglp" or ":" in method


def _check_k(k: int, layers: int) -> None:
    if not 1 <= k <= layers:
        raise SegmentationError(f"k={k} segments can't be made of {layers} layers: k must be 1 to {layers}")


def _features(similarity: np.ndarray, feature: str) -> np.ndarray:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise SegmentationError(f"a similarity matrix is square, but this one has the shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise SegmentationError("the similarity matrix holds values that are not finite")
    if feature == "rows":
        return similarity
    if feature == "row_sum":
        return similarity.sum(axis=1, keepdims=True)
    raise SegmentationError(f"feature={feature!r} is unknown: it must be 'rows' or 'row_sum'")


def _diameters(values: np.ndarray) -> np.ndarray:
    """[layers, layers] sums of squared distances to the mean of elements i..j; infinite where i > j.

    Means and sums are updated one element at a time (Welford), for all starts at once: nothing cancels, as it would
    in differences of prefix sums.
    """
    layers = len(values)
    diameter = np.full((layers, layers), np.inf)
    mean, total = np.zeros_like(values), np.zeros(layers)
    for j in range(layers):
        count = (j - np.arange(j + 1) + 1)[:, None]
        distance = values[j] - mean[: j + 1]
        mean[: j + 1] += distance / count
        total[: j + 1] += (distance**2).sum(axis=1) * ((count - 1) / count)[:, 0]
        diameter[: j + 1, j] = total[: j + 1]
    return diameter
