"""Centred kernel alignment (CKA) between layers, from the Gram matrices of their activations.

Sources: Kornblith et al. 2019 (CKA), Song et al. 2012 (unbiased HSIC), Nguyen et al. 2021 (minibatch CKA: HSIC terms
are averaged over the batches before the ratio is taken).
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor

from sglp.choices import Estimator, Kernel
from sglp.errors import DeadLayerWarning, SimilarityError

ROUNDING = 1e-13  # rounding error of a float64 sum, relative to its terms


def cka_matrix(
    grams: Iterable[Tensor],
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    names: Sequence[str] | None = None,
) -> Tensor:
    """Compute the similarity of each pair of layers over one or more batches.

    Args:
        grams: one tensor [layers, samples, samples] per batch: the Gram matrices X X' of each layer's activations, from
            `gram_matrices`. Batches may differ in size.
        estimator: "unbiased" (about 0 for independent activations of any width) or "biased".
        kernel: "linear", or "rbf" whose width is the median distance between samples.
        names: the layers' names, for the warning about dead layers.

    Returns:
        [layers, layers] float64, symmetric, 1 on the diagonal. A layer whose output is the same for all samples has
        similarity 0 to all other layers; a `DeadLayerWarning` names it.

    Raises:
        SimilarityError: there is no batch, a batch has too few samples (unbiased CKA needs 4, biased 2), a value is not
            finite, or the estimator or the kernel is unknown.
    """
    if estimator not in get_args(Estimator):
        raise SimilarityError(f"estimator={estimator!r} is unknown: it must be 'unbiased' or 'biased'")
    if kernel not in get_args(Kernel):
        raise SimilarityError(f"kernel={kernel!r} is unknown: it must be 'linear' or 'rbf'")
    fewest = 4 if estimator == "unbiased" else 2
    hsic = None
    for block in grams:
        samples = block.shape[-1]
        if samples < fewest:
            raise SimilarityError(f"a batch of {samples} samples is too small: {estimator} CKA needs at least {fewest}")
        block = block.to(torch.float64)
        if not torch.isfinite(torch.stack(block.aminmax())).all():  # amin and amax propagate NaN
            raise SimilarityError("some activations are not finite: is the network's output NaN?")
        block = _rbf(block) if kernel == "rbf" else block
        term = _hsic(block, estimator)
        hsic = term if hsic is None else hsic + term
    if hsic is None:
        raise SimilarityError("there is no batch to compare layers on")
    return _normalise(hsic, names)


def _hsic(block: Tensor, estimator: Estimator) -> Tensor:
    """Compute the HSIC [layers, layers] of each pair as one product of the centred, flattened Gram matrices.

    A block can take gigabytes, so only one copy of it is made, which is centred in place.
    """
    samples, centred = block.shape[-1], _double_centre(block)
    sizes = torch.linalg.vector_norm(centred, dim=(1, 2))
    if estimator == "biased":
        scale = (samples - 1) ** 2
    else:
        _u_centre(centred)
        scale = samples * (samples - 3)
    flat = centred.flatten(1)
    hsic = flat @ flat.T / scale
    # If only one sample differs from the others, U-centring leaves nothing but rounding error.
    own = hsic.diagonal()
    own.masked_fill_(own <= (ROUNDING * sizes) ** 2 / scale, 0)
    return hsic


def _double_centre(block: Tensor) -> Tensor:
    """Compute HKH with H = I - 11'/n."""
    centred = block - block.mean(dim=-1, keepdim=True)
    centred -= centred.mean(dim=-2, keepdim=True)
    return centred


def _u_centre(block: Tensor) -> None:
    """U-centre matrices in place (Szekely and Rizzo 2014): inner products are then n(n-3) times unbiased HSIC.

    Double-centring the matrices first does not change the result, and avoids cancellation in the sums below.
    """
    samples = block.shape[-1]
    block.diagonal(dim1=-2, dim2=-1).zero_()
    rows = block.sum(dim=-1, keepdim=True) / (samples - 2)
    block -= rows
    block -= rows.mT
    block += rows.sum(dim=-2, keepdim=True) / (samples - 1)
    block.diagonal(dim1=-2, dim2=-1).zero_()


def _rbf(block: Tensor) -> Tensor:
    """Compute exp(-d^2 / (2 median(d)^2)) from inner products."""
    squares = block.diagonal(dim1=-2, dim2=-1)
    distances = (squares[:, :, None] + squares[:, None, :]).sub_(block, alpha=2).clamp_min_(0)
    samples = block.shape[-1]
    upper = torch.triu_indices(samples, samples, offset=1)
    median = distances[:, upper[0], upper[1]].median(dim=-1).values
    return distances.div_(-2 * median.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]).exp_()


def _normalise(hsic: Tensor, names: Sequence[str] | None) -> Tensor:
    own = hsic.diagonal()
    # `gram_matrices` gives a constant layer a Gram matrix of zeros.
    dead = own <= 0
    if dead.any():
        which = ", ".join(str(names[i]) if names else f"layer {i}" for i in dead.nonzero().flatten().tolist())
        message = (
            f"the output of {which} is the same for all samples (or for all but one): its similarity to other layers "
            "is set to 0"
        )
        warnings.warn(message, DeadLayerWarning, stacklevel=3)
    scale = torch.where(dead, torch.inf, own).sqrt()
    similarity = hsic / (scale[:, None] * scale[None, :])
    similarity.fill_diagonal_(1)
    return similarity
