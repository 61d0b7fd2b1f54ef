"""What it costs to remove runs of layers, by their reconstruction errors, and the cheapest set of runs."""

from collections.abc import Sequence

import numpy as np

from sglp.segmentation import table_of


def run_costs(
    errors: np.ndarray, removable: Sequence[bool], segments: Sequence[tuple[int, int]] | None = None
) -> np.ndarray:
    """Return what it costs to keep layer i and to remove i+1 to j: [layers, layers], infinite where it can't be done.

    Runs without an error (activations of another shape, runs that were not measured) and runs beyond the segment of
    layer i are the last resort: one of them costs more than all others together.

    Args:
        errors: [layers, layers], from `sglp.reconstruction_errors`.
        removable: for each layer, whether it can be removed.
        segments: inclusive (first, last) pairs that cover all layers; None for no limits.
    """
    layers = len(removable)
    ends = {i: last for first, last in segments or [(0, layers - 1)] for i in range(first, last + 1)}
    last_resort = 1 + errors[np.isfinite(errors)].sum()
    costs = np.full_like(errors, np.inf)
    for i in range(layers):
        costs[i, i] = errors[i, i]
        for j in range(i + 1, layers):
            if not removable[j]:
                break
            is_known = np.isfinite(errors[i, j]) and j <= ends[i]
            costs[i, j] = errors[i, j] if is_known else last_resort * (j - i)
    return costs


def best_kept(
    errors: np.ndarray, removable: Sequence[bool], keep: int, segments: Sequence[tuple[int, int]] | None = None
) -> set[int]:
    """Return the layers to keep: the first ones of `keep` runs with the smallest sum of costs.

    Args:
        errors, removable, segments: see `run_costs`.
        keep: number of layers to keep.
    """
    layers = len(removable)
    if keep == layers - sum(removable):
        return {i for i in range(layers) if not removable[i]}  # the first layer may be among the removed ones
    return {first for first, _ in table_of(run_costs(errors, removable, segments), keep).segments(keep)}


def errors_alone(errors: np.ndarray) -> list[float]:
    """Return the error for each layer if it alone is removed; 0 for the first one and where the error is not known."""
    alone = np.append(0.0, np.diagonal(errors, 1))
    return np.where(np.isfinite(alone), alone, 0.0).tolist()


def shortest_run(removable: Sequence[bool], keep: int, least: int) -> int:
    """Return the smallest longest run, at least `least`, with which no more than `keep` layers have to be kept."""
    longest = max(least, 1)
    while longest < len(removable) and _fewest_kept(removable, longest) > keep:
        longest += 1
    return longest


def _fewest_kept(removable: Sequence[bool], longest: int) -> int:
    """Count the layers that are kept if the first layer is kept, and no more than `longest` in a row are removed."""
    kept = run = 0
    for i, can_be_removed in enumerate(removable):
        run = run + 1 if i and can_be_removed and run < longest else 0
        kept += not run
    return kept
