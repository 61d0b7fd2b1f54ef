"""GradNorm: the norm of the loss's gradient of a network in which only some layers are trained.

Source: SGLP (arXiv 2410.14720), section III; the published code never resets the network between combinations and
draws a new batch for each. Here all combinations see the same random network and the same batches.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.batches import call, device_of, logits_of, to_device
from sglp.errors import ScoringError
from sglp.layers import Layer
from sglp.twin import random_twin

Loss = Callable[[object, object], Tensor]


def cross_entropy(output, target: Tensor) -> Tensor:
    """The loss of a classifier."""
    return F.cross_entropy(logits_of(output), target)


class GradNorm:
    """Scores sets of layers: sqrt of the sum over all parameters of ||dL/dp||^2, one backward pass in train mode.

    The network has the original architecture and random weights, but for the set's layers, which are the trained ones.

    Args:
        network: the trained network; left as it was.
        layers: what `find_layers` found.
        batches: pairs (inputs, target); the score is the mean over them.
        loss: of the network's output and the target; cross-entropy by default.
        seed: of the random weights, and of the random state in which every pass runs (dropout).
        draws: number of random networks (seeds `seed`, `seed + 1`, ...) over which the score is averaged.

    Raises:
        ScoringError: there is no batch.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        batches: Iterable,
        loss: Loss = cross_entropy,
        seed: int = 0,
        draws: int = 1,
    ):
        device = device_of(network)
        self.batches = [to_device(batch, device) for batch in batches]
        if not self.batches:
            raise ScoringError("there is no batch to score layers with")
        self.loss, self.seed = loss, seed
        self.twins = [_Twin(network, layers, seed + draw, device) for draw in range(draws)]

    def __call__(self, kept: Iterable[int]) -> float:
        """The score of the layers with these numbers.

        Raises:
            ScoringError: it is not finite.
        """
        norms = []
        for twin in self.twins:
            twin.train(kept)
            norms += [self._norm(twin.network, *batch) for batch in self.batches]
            twin.reset()
        score = sum(norms) / len(norms)
        if not math.isfinite(score):
            raise ScoringError(f"the score of layers {list(kept)} is {score}: the loss or its gradient is not finite")
        return score

    def _norm(self, network: nn.Module, inputs, target) -> float:
        network.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network.zero_grad(set_to_none=True)
            self.loss(call(network, inputs), target).backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        squares = torch.stack(torch._foreach_norm(grads)).double() ** 2
        network.zero_grad(set_to_none=True)
        return float(squares.sum().sqrt())


class _Twin:
    """A random network whose layers can be given the trained weights and take back their own."""

    def __init__(self, network: nn.Module, layers: Sequence[Layer], seed: int, device: torch.device):
        self.network = random_twin(network, seed).to(device)
        trained, tensors = network.state_dict(), self.network.state_dict()
        self.random = {key: value.clone() for key, value in tensors.items()}
        self.tensors = tensors
        self.layers = [
            [(key, trained[key]) for path in layer.modules for key in tensors if key.startswith(f"{path}.")]
            for layer in layers
        ]

    @torch.no_grad()
    def train(self, kept: Iterable[int]) -> None:
        for i in kept:
            for key, value in self.layers[i]:
                self.tensors[key].copy_(value)

    @torch.no_grad()
    def reset(self) -> None:
        """Everything as it was drawn, running statistics too: the order of the combinations must not matter."""
        for key, value in self.random.items():
            self.tensors[key].copy_(value)
