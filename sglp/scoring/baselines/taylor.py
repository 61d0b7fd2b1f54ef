"""Taylor: remove the layers whose removal would change the loss least, to first order.

The score of a layer is the sum of |w dL/dw| over its matrices and convolutions (norms and biases do not count), with L
the mean loss over the scoring batches, in eval mode.

Source: Shortened LLaMA (arXiv 2402.02834), section 3.1. Its Taylor+ keeps the first four and the last two layers
whatever their score; here every removable layer may be removed.
Cost: forward `B`, backward `B`.
Use: with labels and the memory for a backward pass: the gradients of all removable layers take as much memory as their
weights. The score is a sum: among layers of different sizes small ones are removed first. It is an expansion around the
trained network, where gradients are small, and ignores how two layers interact.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from sglp.batches import at_least_one
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy, labelled, loss_of
from sglp.plan import Plan
from sglp.running import backward, call, eval_mode
from sglp.scores import LayerScore
from sglp.scoring.baselines.magnitude import weights_of
from sglp.scoring.ranking import check_keep, keep_best


def taylor(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
    *,
    loss: Loss = cross_entropy,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers with the smallest sum of |w dL/dw|; a layer that can't be removed has score 0.

    The arguments are those of every method; see `sglp.scoring.methods`. `loss` is called as loss(output, target).

    Raises:
        ScoringError: `batches` is empty, or a score is not finite.
    """
    check_keep(layers, keep)
    return keep_best(layers, saliences(network, layers, batches, loss), keep, "taylor score")


def saliences(
    network: nn.Module, layers: Sequence[Layer], batches: Iterable, loss: Loss = cross_entropy
) -> list[float]:
    """Return the sum of |w dL/dw| over the weights of each layer, or 0 for a layer that can't be removed."""
    weights = [weights_of(network, layer) if layer.removable else [] for layer in layers]
    count = 0
    with eval_mode(network), torch.enable_grad(), _gradients(network, [weight for part in weights for weight in part]):
        for batch in at_least_one(batches):
            ((inputs, target),) = labelled(network, [batch], loss)
            backward(loss_of(loss, call(network, inputs), target))
            count += 1
        return [sum(_salience(weight) for weight in part) / count for part in weights]


def _salience(weight: nn.Parameter) -> float:
    # A weight that no sample reached (an expert's) has no gradient.
    return 0.0 if weight.grad is None else float((weight.detach().double() * weight.grad.double()).abs().sum())


@contextmanager
def _gradients(network: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Accumulate gradients of these parameters only; restore the gradients of all parameters afterwards."""
    saved = [(parameter, parameter.grad, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _, _ in saved:
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, gradient, required in saved:
            parameter.grad = gradient
            parameter.requires_grad_(required)
