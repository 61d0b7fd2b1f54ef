"""Reconstruction error: keep the layers that, once refitted, can take over the work of the removed layers after them.

x_j is the activation after layer j. D(i, j) is the share of x_j that layer i fails to produce, even after it is
refitted, when the layers i+1 to j are removed: the mean of ||x_j - y||^2 / ||x_j||^2 over held-out tokens or positions.
The refit is least squares for the last linear map where the layer is affine in it, else a few steps of Adam. The score
is minus the sum of D over the runs of removed layers, each with the kept layer before it. With the search "joint" the
best plan is found exactly, by the dynamic programme of Fisher's segmentation: a run of removed layers stays inside a
segment where that is possible, so that each segment keeps its first layer. A score in scores.csv is then the error
if only that layer is removed; it is 0 for the first layer and for layers that can't be removed.

Source: this project. ReplaceMe (arXiv 2505.02819) fits one layer to the activation after a gap; the programme is that
of Fisher's segmentation, as in SGLP (arXiv 2410.14720).
Cost: forward `B + 1`, backward `0`, where fewer than 8 batches are cut into 8. One of the passes uses a single sample;
each layer that is not passed what the layer before it returns takes two more. The refits come on top, whatever r is:
they take as long as about three more forward passes where least squares applies, otherwise 8 backward passes through
one layer for each pair of layers at most 7 apart.
Use: as the default, together with `sglp.reconstruct` after the removal, which refits the kept layers. It needs no
labels and no loss. It adds up errors as if runs did not affect each other, and does not know how much an error harms
the output.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.loss import Loss
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.scoring.run_costs import best_kept, errors_alone, run_costs


class ReconstructionError:
    """Minus the sum of the reconstruction errors of all runs of removed layers.

    Args:
        network: the trained network; it is left unchanged.
        layers: as returned by `find_layers`.
        batches: pairs (inputs, target), whose targets are not used; many tokens or images are better than few.
        loss, seed, random_inits: not used.
        errors: [layers, layers], from `sglp.reconstruction_errors`; by default they are measured on `batches`.

    Raises:
        ScoringError: see `reconstruction_errors`.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        batches: Iterable,
        loss: Loss | None = None,
        seed: int = 0,
        random_inits: int = 1,
        *,
        errors: np.ndarray | None = None,
    ):
        self.removable = [layer.removable for layer in layers]
        self.errors = reconstruction_errors(network, layers, batches) if errors is None else errors
        self.costs = run_costs(self.errors, self.removable)

    def __call__(self, kept: Iterable[int], removed: Iterable[int], already_removed: Iterable[int] = ()) -> float:
        """Return minus the sum of errors without the layers `removed` and `already_removed`; 0 for no change."""
        missing = {*removed, *already_removed}
        heads = [i for i in range(len(self.removable)) if i not in missing]
        # Layers before the first kept one have no layer to take over their work: they cost as the last resort does.
        total = float(self.costs[np.isfinite(self.costs)].sum()) * heads[0]
        ends = [*(head - 1 for head in heads[1:]), len(self.removable) - 1]
        return -(total + float(sum(self.costs[i, j] for i, j in zip(heads, ends, strict=True))))

    def solve(self, segments: Sequence[tuple[int, int]], keep: int) -> tuple[set[int], list[float]]:
        """Return the layers that the best plan keeps, found exactly, and for each layer the error without it alone."""
        return best_kept(self.errors, self.removable, keep, segments), errors_alone(self.errors)


criterion = ReconstructionError
