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
    right: Tensor | None = None  # transposed, as the solver needs it
    for inputs, residuals, weights in batches:
        inputs, weights = inputs.to(residuals), weights.to(residuals)
        weighted = inputs * weights[:, None]
        normal = _plus(normal, weighted.T, inputs)
        right = _plus(right, residuals.T, weighted)
    if normal is None or right is None:
        raise ValueError("least squares needs a batch")
    normal, right = all_reduce_sum(normal), all_reduce_sum(right)
    lam = ridge * float(normal.diagonal().mean())
    if lam == 0 and not normal.any():
        return torch.zeros_like(right)
    normal.diagonal().add_(lam)
    # In place, as the matrices can be larger than the layer; a symmetric matrix is its own transpose.
    factors, pivots = normal.T, torch.empty(0, dtype=torch.int32, device=normal.device)
    torch.linalg.lu_factor(factors, out=(factors, pivots))
    torch.linalg.lu_solve(factors, pivots, right.T, out=right.T)
    return right


def _plus(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add a product to a float64 sum in place."""
    if total is None:
        return (left @ right).double()
    return total.addmm_(left, right) if left.dtype == total.dtype else total.add_(left @ right)
