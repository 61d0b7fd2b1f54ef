"""Reconstruction error: remove the layers whose work the kept layer before them can take over best.

x_j is the activation after layer j. D(i, j) is the share of x_j that layer i fails to produce, even after it is
refitted, when the layers i+1 to j are removed: the mean of ||x_j - y||^2 / ||x_j||^2 over held-out tokens or positions.
The refit is least squares for the last linear map where the layer is affine in it, else a few steps of Adam. A plan
cuts the layers into segments and keeps the first layer of each. The plan with the smallest sum of D is found exactly,
by the dynamic programme of Fisher's segmentation. A score in scores.csv is the error if only that layer is removed; it
is 0 for the first layer and for layers that can't be removed.

Source: this project. ReplaceMe (arXiv 2505.02819) fits one layer to the activation after a gap; the programme is that
of Fisher's segmentation, as in SGLP (arXiv 2410.14720).
Cost: forward `B`, backward `0`, where fewer than 8 batches are cut into 8. The refits come on top, whatever r is: they
take as long as about three more forward passes where least squares applies, otherwise 8 backward passes through one
layer for each pair of layers at most 7 apart.
Use: together with `sglp.reconstruct` after the removal, which refits the kept layers. It needs no labels. It adds up
errors as if runs did not affect each other, and does not know how much an error harms the output.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.scores import LayerScore
from sglp.scoring.combinations import best_plan
from sglp.scoring.ranking import check_keep
from sglp.segmentation import table_of

LONGEST_RUN = 7


def reconstruction_error(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
    *,
    errors: np.ndarray | None = None,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the runs of layers with the smallest sum of reconstruction errors.

    Args:
        network, layers, segments, similarity, batches, keep, seed: as for every method; see `sglp.scoring.methods`.
        errors: [layers, layers], from `sglp.reconstruction_errors`. By default they are measured on `batches`, for runs
            of up to 7 layers, or longer ones where `keep` needs them; many tokens or images are better than few. Runs
            without an error are removed only if `keep` can't be reached otherwise.

    Raises:
        BudgetError: see `check_keep`.
        ScoringError: see `reconstruction_errors`.
    """
    check_keep(layers, keep)
    removable = [layer.removable for layer in layers]
    if errors is None:
        errors = reconstruction_errors(network, layers, batches, longest=shortest_run(removable, keep, LONGEST_RUN))
    kept = best_kept(errors, removable, keep)
    alone = np.append(0.0, np.diagonal(errors, 1))
    rows = [
        LayerScore(0, i, float(alone[i]) if np.isfinite(alone[i]) else 0.0, "reconstruction error", i in kept)
        for i in range(len(layers))
    ]
    return best_plan(layers, rows), rows


def shortest_run(removable: Sequence[bool], keep: int, least: int) -> int:
    """Return the smallest longest run, at least `least`, with which no more than `keep` layers have to be kept."""
    longest = max(least, 1)
    while longest < len(removable) and _fewest_kept(removable, longest) > keep:
        longest += 1
    return longest


def best_kept(errors: np.ndarray, removable: Sequence[bool], keep: int) -> set[int]:
    """Return the layers to keep: the first ones of `keep` segments with the smallest sum of errors.

    Args:
        errors: [layers, layers], from `reconstruction_errors`; the error of the segment i..j at [i, j].
        removable: for each layer, whether it can be removed.
        keep: number of layers to keep.
    """
    layers = len(removable)
    if keep == layers - sum(removable):
        return {i for i in range(layers) if not removable[i]}  # the first layer may be among the removed ones
    # Activations of different shapes have no error. Segments with them are the last resort: they cost more than all
    # others together.
    last_resort = 1 + errors[np.isfinite(errors)].sum()
    costs = np.full_like(errors, np.inf)
    for i in range(layers):
        costs[i, i] = errors[i, i]
        for j in range(i + 1, layers):
            if not removable[j]:
                break
            costs[i, j] = errors[i, j] if np.isfinite(errors[i, j]) else last_resort * (j - i)
    return {first for first, _ in table_of(costs, keep).segments(keep)}


def _fewest_kept(removable: Sequence[bool], longest: int) -> int:
    """Count the layers that are kept if the first layer is kept, and no more than `longest` in a row are removed."""
    kept = run = 0
    for i, can_be_removed in enumerate(removable):
        run = run + 1 if i and can_be_removed and run < longest else 0
        kept += not run
    return kept
