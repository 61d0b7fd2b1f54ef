"""Taylor: layers go whose weights' removal would change the loss least, to first order.

The score of a layer is the sum of |w dL/dw| over its matrices and convolutions (norms and biases do not count), with L
the mean loss over the scoring batches, in eval mode.

Source: Shortened LLaMA (arXiv 2402.02834), section 3.1. Its Taylor+ keeps the first four and the last two layers
whatever their score; here every layer that can go may go.
Cost: forward `B`, backward `B`.
Use: where labels and the memory of a backward pass are at hand: the gradients of all layers that can go take as much as
their weights. It is a sum: among layers of different sizes small ones go first. It is an expansion around the trained
network, where gradients are small, and knows nothing of what two layers do together.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sglp.batches import at_least_one, to_device
from sglp.layer import Layer
from sglp.loss import cross_entropy
from sglp.plan import Plan
from sglp.running import backward, call, device_of, eval_mode
from sglp.scores import LayerScore
from sglp.scoring.baselines.magnitude import weights_of
from sglp.scoring.ranking import check_keep, keep_best


def taylor(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers of the smallest sum of |w dL/dw|; the score of one that can't go is 0.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: there is no batch, or a score is not finite.
    """
    check_keep(layers, keep)
    return keep_best(layers, saliences(network, layers, batches), keep, "taylor score")


def saliences(network: nn.Module, layers: Sequence[Layer], batches: Iterable) -> list[float]:
    """The sum of |w dL/dw| over the weights of every layer; 0 for one that can't go."""
    weights = [weights_of(network, layer) if layer.removable else [] for layer in layers]
    device, count = device_of(network), 0
    with eval_mode(network), torch.enable_grad(), _gradients(network, [weight for part in weights for weight in part]):
        for batch in at_least_one(batches):
            inputs, target = to_device(batch, device)
            backward(cross_entropy(call(network, inputs), target))
            count += 1
        return [sum(_salience(weight) for weight in part) / count for part in weights]


def _salience(weight: nn.Parameter) -> float:
    # A weight that no sample reached (an expert's) has no gradient.
    return 0.0 if weight.grad is None else float((weight.detach().double() * weight.grad.double()).abs().sum())


@contextmanager
def _gradients(network: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients of these parameters only, from none on; afterwards every parameter has its own back."""
    before = [(parameter, parameter.grad, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, gradient, required in before:
            parameter.grad = gradient
            parameter.requires_grad_(required)
