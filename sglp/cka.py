"""Centred kernel alignment (CKA) between layers, from the Gram matrices of their activations.

Sources: Kornblith et al. 2019 (CKA), Song et al. 2012 (unbiased HSIC), Nguyen et al. 2021 (minibatch CKA: each HSIC
term is averaged over the batches, then the ratio is taken).
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor

from sglp.choices import Estimator, Kernel
from sglp.errors import DeadLayerWarning, SimilarityError

ROUNDING = 1e-13  # of float64, as a share of what sums are taken of


def cka_matrix(
    grams: Iterable[Tensor],
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    names: Sequence[str] | None = None,
) -> Tensor:
    """Similarity of every pair of layers, over one or more batches.

    Args:
        grams: one tensor [layers, samples, samples] a batch: the Gram matrices X X' of each layer's activations
            (what `gram_matrices` yields). Batches may differ in size.
        estimator: "unbiased" (about 0 for independent activations, whatever their width) or "biased".
        kernel: "linear", or "rbf" with the median distance between samples as its width.
        names: the layers' names, for the warning about dead layers.

    Returns:
        [layers, layers] float64, symmetric, 1 on the diagonal. A layer whose output is the same for all samples has
        similarity 0 to all others, and a `DeadLayerWarning` names it.

    Raises:
        SimilarityError: no batch, too few samples (4 unbiased, 2 biased), values that are not finite, or an unknown
            estimator or kernel.
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
            raise SimilarityError(f"a batch of {samples} samples is too small: {estimator} CKA needs {fewest} or more")
        block = block.to(torch.float64)
        if not torch.isfinite(torch.stack(block.aminmax())).all():  # which pass NaN on
            raise SimilarityError("the activations hold values that are not finite: is the network's output NaN?")
        block = _rbf(block) if kernel == "rbf" else block
        term = _hsic(block, estimator)
        hsic = term if hsic is None else hsic + term
    if hsic is None:
        raise SimilarityError("there is no batch of activations to compare layers with")
    return _normalise(hsic, names)


def _hsic(block: Tensor, estimator: Estimator) -> Tensor:
    """[layers, layers] HSIC of every pair: one product of the centred, flattened Gram matrices.

    Many layers or samples make a block of gigabytes: besides it there is one copy, centred in place.
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
    # Where one sample alone differs from the others U-centring leaves nothing but rounding, which is no similarity.
    own = hsic.diagonal()
    own.masked_fill_(own <= (ROUNDING * sizes) ** 2 / scale, 0)
    return hsic


def _double_centre(block: Tensor) -> Tensor:
    """HKH with H = I - 11'/n."""
    centred = block - block.mean(dim=-1, keepdim=True)
    centred -= centred.mean(dim=-2, keepdim=True)
    return centred


def _u_centre(block: Tensor) -> None:
    """U-centring (Szekely and Rizzo 2014), in place: the inner product of two such is n(n-3) times unbiased HSIC.

    Centring first changes nothing in the result and keeps the sums below from cancelling.
    """
    samples = block.shape[-1]
    block.diagonal(dim1=-2, dim2=-1).zero_()
    rows = block.sum(dim=-1, keepdim=True) / (samples - 2)
    block -= rows
    block -= rows.mT
    block += rows.sum(dim=-2, keepdim=True) / (samples - 1)
    block.diagonal(dim1=-2, dim2=-1).zero_()


def _rbf(block: Tensor) -> Tensor:
    """exp(-d^2 / (2 median(d)^2)) from the inner products."""
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
            f"nothing differs between samples (or one of them alone) in the output of {which}: its similarity to other "
            "layers is set to 0"
        )
        warnings.warn(message, DeadLayerWarning, stacklevel=3)
    scale = torch.where(dead, torch.inf, own).sqrt()
    similarity = hsic / (scale[:, None] * scale[None, :])
    similarity.fill_diagonal_(1)
    return similarity
