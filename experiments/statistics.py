"""Statistics over runs: the Pareto front, rank correlations, and how much sets of removed layers agree."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

Values = pd.Series | Sequence[float]


def pareto_front(points: pd.DataFrame) -> list[int]:
    """Find the points that no other point beats: none is as cheap and as good, and better in cost or quality.

    Args:
        points: the columns are a cost and a quality; a higher quality is better.

    Returns:
        Index labels, the cheapest point first; equal points are all on the front.
    """
    cost, quality = points.columns
    ordered = points.sort_values([cost, quality], ascending=[True, False])
    best = ordered[ordered[quality] == ordered[quality].cummax()]
    return list(best.index[best[cost] == best.groupby(quality)[cost].transform("min")])


def rank_correlation(x: Values, y: Values, groups: Values | None = None) -> float:
    """Compute Spearman's rank correlation within groups, as one number; NaN if x or y does not vary in any group.

    Ranks are taken and centred within each group; the result is Pearson's correlation of all centred ranks. With one
    group (the default), this is Spearman's rho. There is no p value: the same plans occur with every seed, so groups
    are not independent.
    """
    values = pd.DataFrame({"x": x, "y": y, "group": 0 if groups is None else groups})
    ranks = values.groupby("group").rank()
    centred = ranks - ranks.groupby(values["group"]).transform("mean")
    return float(centred.corr().to_numpy()[0, 1])


def partial_correlation(x: Values, y: Values, third: Values) -> float:
    """Compute Spearman's partial correlation, of what a third variable does not explain; NaN if nothing is left."""
    rho = pd.DataFrame({"x": x, "y": y, "third": third}).corr("spearman").to_numpy()
    xy, (xz, yz) = rho[0, 1], np.nan_to_num(rho[:2, 2])  # a constant explains nothing
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / left**0.5) if left > 1e-12 else np.nan


def removals(sets: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Return a boolean matrix (sets, indices): whether each set holds each of the indices below `count`."""
    return np.array([np.isin(np.arange(count), list(indices)) for indices in sets])


def stability(matrix: np.ndarray) -> float:
    """Compute the mean Jaccard similarity over all pairs of rows, 1 for two empty rows; NaN for a single row."""
    return float(np.mean(1 - pdist(matrix, "jaccard"))) if len(matrix) > 1 else np.nan
