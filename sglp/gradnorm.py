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
IGNORED = -100  # the target of a row of logits that has none


def cross_entropy(output, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a classifier: of samples, or of tokens where every token's target is the next one.

    Args:
        output: logits [..., classes], or what transformers returns around them.
        target: classes [...], `IGNORED` where a row has none.
        label_smoothing: share of the target that all classes get alike.
    """
    logits = logits_of(output).flatten(0, -2)
    # In half precision a sum over a vocabulary is too coarse.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)


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
            norms += [self._norm(twin, *batch) for batch in self.batches]
            twin.reset()
        score = sum(norms) / len(norms)
        if not math.isfinite(score):
            raise ScoringError(f"the score of layers {list(kept)} is {score}: the loss or its gradient is not finite")
        return score

    def _norm(self, twin: "_Twin", inputs, target) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.loss(call(twin.network.train(), inputs), target).backward()
        return float(torch.stack(twin.taken_squares()).sum().sqrt())


class _Twin:
    """A random network whose layers can be given the trained weights and take back their own.

    It costs the memory of one network: a layer is lent the trained parameters themselves, and every gradient is dropped
    as soon as its norm is taken.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], seed: int, device: torch.device):
        self.network = random_twin(network, seed).to(device)
        self.squares: list[Tensor] = []
        for parameter in self.network.parameters():
            parameter.register_post_accumulate_grad_hook(self._take)
        trained, own = dict(network.named_parameters()), dict(self.network.named_parameters())
        self.random = [(parameter, parameter.data) for parameter in own.values()]
        self.layers = [
            [(own[key], trained[key].data) for path in layer.modules for key in own if key.startswith(f"{path}.")]
            for layer in layers
        ]
        # Running statistics change in every pass: they are copied.
        buffers, statistics = dict(self.network.named_buffers()), dict(network.named_buffers())
        self.random_buffers = [(buffer, buffer.clone()) for buffer in buffers.values()]
        self.buffers = [
            [(buffers[key], statistics[key]) for path in layer.modules for key in buffers if key.startswith(f"{path}.")]
            for layer in layers
        ]

    def train(self, kept: Iterable[int]) -> None:
        """Give these layers what was trained."""
        for i in kept:
            for parameter, data in self.layers[i]:
                parameter.data = data
            for buffer, values in self.buffers[i]:
                buffer.copy_(values)

    def reset(self) -> None:
        """Everything as it was drawn, running statistics too: the order of the combinations must not matter."""
        for parameter, data in self.random:
            parameter.data = data
        for buffer, values in self.random_buffers:
            buffer.copy_(values)

    def taken_squares(self) -> list[Tensor]:
        """The squared norms of the gradients of the last pass."""
        squares, self.squares = self.squares, []
        return squares

    def _take(self, parameter: Tensor) -> None:
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.promote_types(parameter.dtype, torch.float32))
        self.squares.append(norm.double() ** 2)
        parameter.grad = None
