"""Reconstruction error without segments: remove the layers whose work the kept layer before them can take over best.

The rule of the criterion `reconstruction_error`, for the whole network as one segment: a plan cuts the layers into runs
and keeps the first layer of each. D(i, j) is the share of the activation after layer j that layer i fails to produce,
even after it is refitted, when the layers i+1 to j are removed. The plan with the smallest sum of D is found exactly,
by the dynamic programme of Fisher's segmentation. A score in scores.csv is the error if only that layer is removed; it
is 0 for the first layer and for layers that can't be removed.

Source: this project. ReplaceMe (arXiv 2505.02819) fits one layer to the activation after a gap; the programme is that
of Fisher's segmentation, as in SGLP (arXiv 2410.14720).
Cost: forward `B + 1`, backward `0`, where fewer than 8 batches are cut into 8. One of the passes uses a single sample;
each layer that is not passed what the layer before it returns takes two more. The refits come on top, whatever r is:
they take as long as about three more forward passes where least squares applies, otherwise 8 backward passes through
one layer for each pair of layers at most 7 apart.
Use: to see what segments change. It needs no labels. It adds up errors as if runs did not affect each other, and does
not know how much an error harms the output.
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
from sglp.scoring.run_costs import best_kept, errors_alone, shortest_run

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
    rows = [LayerScore(0, i, alone, "reconstruction error", i in kept) for i, alone in enumerate(errors_alone(errors))]
    return best_plan(layers, rows), rows
