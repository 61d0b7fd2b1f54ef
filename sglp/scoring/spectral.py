"""Spectral clustering of a matrix of affinities, without random numbers."""

import numpy as np

ROUNDS = 300  # k-means changes no label long before


def spectral_clusters(affinity: np.ndarray, count: int) -> list[int]:
    """Split items into clusters by normalised spectral clustering (Shi and Malik, 2000).

    An item's point has the `count` smallest eigenvectors of the normalised Laplacian as coordinates, each divided by
    the square root of the item's degree. K-means clusters the points.

    Args:
        affinity: [items, items] symmetric, at least 0; the diagonal has no effect.
        count: number of clusters.

    Returns:
        The cluster of each item; clusters are numbered from 0 by their first items. There can be fewer than `count`
        if points coincide.
    """
    weights = np.array(affinity, dtype=np.float64)
    np.fill_diagonal(weights, 0)
    degrees = weights.sum(axis=1)
    scale = np.sqrt(np.where(degrees > 0, degrees, 1))
    laplacian = np.eye(len(weights)) - weights / scale[:, None] / scale
    _, vectors = np.linalg.eigh(laplacian)
    labels = k_means(vectors[:, :count] / scale[:, None], count).tolist()
    order = list(dict.fromkeys(labels))
    return [order.index(label) for label in labels]


def k_means(points: np.ndarray, count: int) -> np.ndarray:
    """Return the cluster of each point: the best of Lloyd's results, started once from each point.

    The other initial centres are the points farthest from the centres before them.

    Args:
        points: [points, coordinates].
        count: number of clusters; clusters can end up empty.
    """
    results = []
    for start in range(len(points)):
        centres = points[[start]]
        while len(centres) < count:
            farthest = _squared_distances(points, centres).min(axis=1).argmax()
            centres = np.vstack([centres, points[farthest]])
        results.append(_lloyd(points, centres))
    return min(results, key=lambda result: result[0])[1]


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of squared distances to the centres, and the labels."""
    labels = np.full(len(points), -1)
    for _ in range(ROUNDS):
        distances = _squared_distances(points, centres)
        nearest = distances.argmin(axis=1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = np.stack(
            [points[labels == k].mean(axis=0) if (labels == k).any() else centre for k, centre in enumerate(centres)]
        )
    return float(distances.min(axis=1).sum()), labels


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.square(points[:, None] - centres[None]).sum(axis=-1)
