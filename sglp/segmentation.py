"""Fisher's optimal segmentation of an ordered sequence: one table holds the exact optimum for each k.

Source: SGLP (arXiv 2410.14720), section III; W. D. Fisher, "On grouping for maximum homogeneity", 1958.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sglp.choices import Feature, is_whole_number, runs_sglp
from sglp.errors import SegmentationError


@dataclass(frozen=True)
class SegmentationTable:
    """The optimal segmentations of one sequence, for each number of segments.

    Attributes:
        losses: [layers], `losses[k - 1]` is the smallest sum of diameters of k segments: infinite if each cut into k
            segments has an infinite diameter, NaN if the table was made for fewer segments.
        starts: [layers, layers], `starts[k - 1, j]` is the first element of the last segment in the optimal k segments
            of elements 0..j (the smallest such index in a tie).
    """

    losses: np.ndarray
    starts: np.ndarray

    def segments(self, k: int) -> list[tuple[int, int]]:
        """Return the optimal k segments as inclusive (first, last) pairs.

        Raises:
            SegmentationError: k is not between 1 and the number of layers, or larger than the table was made for, or
                each cut into k segments has an infinite diameter.
        """
        _check_k(k, len(self.losses))
        if np.isnan(self.losses[k - 1]):
            max_k = int((~np.isnan(self.losses)).sum())
            raise SegmentationError(f"k={k} is not in this table, which was made for up to {max_k} segments")
        if np.isinf(self.losses[k - 1]):
            possible = ", ".join(str(i + 1) for i in np.flatnonzero(np.isfinite(self.losses)))
            raise SegmentationError(
                f"k={k} segments can't be made of these {len(self.losses)} layers, as each cut has a segment that is "
                f"not allowed: k can be {possible or 'no number'}"
            )
        segments, last = [], len(self.losses) - 1
        for row in range(k - 1, -1, -1):
            first = int(self.starts[row, last])
            segments.append((first, last))
            last = first - 1
        return segments[::-1]


def fisher_segmentation(similarity: ArrayLike, k: int, feature: Feature = "rows") -> list[tuple[int, int]]:
    """Cut layers into the k contiguous segments with the smallest sum of squared distances to the segment means.

    Args:
        similarity: [layers, layers] matrix of similarities between layers, in order of execution.
        k: number of segments, 1 to the number of layers.
        feature: what represents a layer: "rows", its row of the matrix, or "row_sum", the sum of that row (the paper's
            choice).

    Returns:
        k inclusive (first, last) pairs that cover all layers in order.

    Raises:
        SegmentationError: k is impossible, the matrix is not square or not finite, or the feature is unknown.
    """
    if not is_whole_number(k):
        raise SegmentationError(f"k={k!r} is wrong: it must be a whole number")
    return segmentation_table(similarity, feature, k).segments(k)


def segmentation_table(similarity: ArrayLike, feature: Feature = "rows", max_k: int | None = None) -> SegmentationTable:
    """Compute all optimal segmentations with up to `max_k` segments (default: one per layer), in O(max_k layers^2).

    Arguments and errors are as in `fisher_segmentation`.
    """
    return table_of(_diameters(_features(np.asarray(similarity, dtype=np.float64), feature)), max_k)


def table_of(diameters: ArrayLike, max_k: int | None = None) -> SegmentationTable:
    """Compute the segmentations with the smallest sum of any diameters, in O(max_k layers^2).

    Args:
        diameters: [layers, layers], the diameter of the segment i..j at [i, j]; infinite if it is not allowed. Entries
            below the diagonal are ignored.
        max_k: the largest number of segments in the table; default: one per layer.

    Raises:
        SegmentationError: the array is not square, or a diameter is NaN.
    """
    diameter = np.asarray(diameters, dtype=np.float64)
    if diameter.ndim != 2 or diameter.shape[0] != diameter.shape[1] or not diameter.size:
        raise SegmentationError(f"diameters must be a square array, but this one has the shape {diameter.shape}")
    layers = len(diameter)
    diameter = np.where(np.tri(layers, k=-1, dtype=bool), np.inf, diameter)
    if np.isnan(diameter).any():
        raise SegmentationError("a diameter is NaN: it must be a number, or infinite if the segment is not allowed")
    rows = layers if max_k is None else min(max(max_k, 1), layers)
    starts = np.zeros((layers, layers), dtype=np.int64)
    losses = np.full(layers, np.nan)
    best = diameter[0]
    losses[0] = best[-1]
    for row in range(1, rows):
        # candidate[i, j]: the last segment is i..j, and the elements before it are cut optimally into one segment less.
        candidate = np.full((layers, layers), np.inf)
        candidate[row:] = best[row - 1 : layers - 1, None] + diameter[row:]
        starts[row] = candidate.argmin(axis=0)
        best = candidate.min(axis=0)
        losses[row] = best[-1]
    return SegmentationTable(losses, starts)


def equal_segments(layers: int, k: int) -> list[tuple[int, int]]:
    """Cut layers into k contiguous segments of nearly equal size, regardless of similarity.

    Raises:
        SegmentationError: k is not between 1 and the number of layers.
    """
    _check_k(k, layers)
    borders = [round(i * layers / k) for i in range(k + 1)]
    return [(first, after - 1) for first, after in pairwise(borders)]


def choose_k(losses: ArrayLike, share: float = 0.05) -> int:
    """Return the largest k whose last cut lowers the loss by at least `share` of the one-segment loss (at least 1).

    Source: the rule of SGLP's published code (5 %), measured against the loss of a single segment instead of the loss
    before the cut, so that cuts in noise near a loss of zero do not count.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if not losses[0] > 0:  # also if it is NaN
        return 1
    drops = losses[:-1] - losses[1:]
    worthwhile = np.flatnonzero(drops >= share * losses[0])
    return int(worthwhile[-1]) + 2 if len(worthwhile) else 1


def number_of_segments(k: int | Literal["auto"], losses: ArrayLike, method: str = "sglp", share: float = 0.05) -> int:
    """Return the number of segments for a method: k, or `choose_k` for "auto"; 1 if the method uses no segments."""
    # Always 1, so that another k does not re-run a method that ignores segments.
    if not uses_segments(method):
        return 1
    return choose_k(losses, share) if k == "auto" else k


def uses_segments(method: str) -> bool:
    """Check whether a method may use segments: those that run "sglp" and users' methods may, baselines do not."""
    return runs_sglp(method) or ":" in method


def _check_k(k: int, layers: int) -> None:
    if not is_whole_number(k):
        raise SegmentationError(f"k={k!r} is wrong: it must be a whole number, 1 to {layers}")
    if not 1 <= k <= layers:
        raise SegmentationError(f"k={k} segments can't be made of {layers} layers: k must be 1 to {layers}")


def _features(similarity: np.ndarray, feature: str) -> np.ndarray:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise SegmentationError(f"a similarity matrix must be square, but this one has the shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise SegmentationError("the similarity matrix has values that are not finite")
    if feature == "rows":
        return similarity
    if feature == "row_sum":
        return similarity.sum(axis=1, keepdims=True)
    raise SegmentationError(f"feature={feature!r} is unknown: it must be 'rows' or 'row_sum'")


def _diameters(values: np.ndarray) -> np.ndarray:
    """Compute [layers, layers] sums of squared distances to the mean of elements i..j; infinite where i > j.

    Means and sums are updated one element at a time (Welford), for all starts at once. This avoids the cancellation of
    differences of prefix sums.
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
