"""Magnitude: remove the layers with the smallest weights.

The score of a layer is the L1 norm of its weights: the sum of |w| over its matrices and convolutions. Norms and biases
do not count. It is a sum, as published, and not a mean: a layer with more weights has a larger score.

Source: Shortened LLaMA (arXiv 2402.02834), section 3.1, after Li et al. 2017 (arXiv 1608.08710), who rank filters this
way.
Cost: forward `0`, backward `0`.
Use: without data, among layers of one size. Where sizes differ, as between the stages of a CNN, narrow layers are
removed first whatever they do. Where a norm follows, weights can be scaled without changing what the network computes,
so that their size says little about their importance.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def magnitude(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers with the smallest L1 norm; a layer that can't be removed has score 0.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    norms = [
        sum(float(weight.detach().double().abs().sum()) for weight in weights_of(network, layer))
        if layer.removable
        else 0.0
        for layer in layers
    ]
    return keep_best(layers, norms, keep, "magnitude")


def weights_of(network: nn.Module, layer: Layer) -> list[nn.Parameter]:
    """Return a layer's matrices and convolutions: its parameters of two or more dimensions."""
    parameters = (parameter for path in layer.modules for parameter in network.get_submodule(path).parameters())
    return [parameter for parameter in parameters if parameter.ndim > 1]
