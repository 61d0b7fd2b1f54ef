"""Weighted least squares for the last linear map of a layer."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sglp.distributed.all_reduce import all_reduce_sum


def least_squares(batches: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float) -> Tensor:
    """The change of a weight that fits residuals best: (H' diag(w) H + lam I)^-1 H' diag(w) R, transposed.

    Sums are taken over rows, so that batches stream, and processes add theirs. The products of a batch have the
    precision of its residuals; their sums and the solution are float64.

    Args:
        batches: (H, R, w) for every batch: the map's inputs [rows, in], residuals [rows, out], weights [rows].
        ridge: lam as a share of the mean of the diagonal of H' diag(w) H.

    Returns:
        [out, in] float64. Zeros if no row counts.
    """
    normal: Tensor | None = None
    right: Tensor | None = None
    for inputs, residuals, weights in batches:
        inputs, weights = inputs.to(residuals), weights.to(residuals)
        weighted = inputs * weights[:, None]
        normal = (weighted.T @ inputs).double() + (0 if normal is None else normal)
        right = (weighted.T @ residuals).double() + (0 if right is None else right)
    if normal is None or right is None:
        raise ValueError("least squares needs a batch")
    normal, right = all_reduce_sum(normal), all_reduce_sum(right)
    lam = ridge * float(normal.diagonal().mean())
    if lam == 0 and not normal.any():
        return torch.zeros_like(right.T)
    normal.diagonal().add_(lam)
    return torch.linalg.solve(normal, right).T
