"""GradNorm: the layers stay that make the gradient of a random network largest.

The network has the original architecture and random weights, but for the combination's layers, which are the trained
ones. The score is the norm of the loss's gradient in one pass in train mode, sqrt of the sum over all parameters of
||dL/dp||^2, averaged over batches and random networks.

Source: SGLP (arXiv 2410.14720), section III. The published code never resets the network between combinations and draws
a new batch for each; here all combinations see the same random networks and the same batches.
Cost: forward `C * B * D + D`, backward `C * B * D`. A random network takes one pass of one sample, the memory of a
network, and that of what its pass keeps for gradients, of every batch.
Use: as the criterion of the paper, and as what others are held against; with `score.search: independent` or `sequential`. It
asks about a segment's layers among random ones, not about the network that is left, and depends on the draw of the
random weights: average over several (`score.random_inits`).
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.running import backward, call, device_of, seeded
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.batchnorm import batch_statistics
from sglp.surgery.bypass import Bypass
from sglp.surgery.random_weights import reinitialized


class GradNorm:
    """Scores sets of layers: sqrt of the sum over all parameters of ||dL/dp||^2, one backward pass in train mode.

    The network has the original architecture and random weights, but for the set's layers, which are the trained ones.

    Args:
        network: the trained network; left as it was.
        layers: what `find_layers` found.
        batches: pairs (inputs, target); the score is the mean over them.
        loss: of the network's output and the target; cross-entropy by default.
        seed: of the random weights (see `reinitialized`), and of the random state in which every pass runs (dropout).
        random_inits: number of random networks (seeds `seed`, `seed + 1`, ...) over which the score is averaged.

    Raises:
        ScoringError: there is no batch.
    """

    of_segment = True
    leaks = False

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        batches: Iterable,
        loss: Loss = cross_entropy,
        seed: int = 0,
        random_inits: int = 1,
    ):
        device = device_of(network)
        self.batches = [to_device(batch, device) for batch in at_least_one(batches)]
        self.loss, self.seed = loss, seed
        inputs = inputs_of(self.batches[0])
        self.twins = [_Twin(network, layers, seed + draw, inputs) for draw in range(random_inits)]

    def __call__(self, kept: Iterable[int], gone: Iterable[int] = (), before: Iterable[int] = ()) -> float:
        """The score of the layers with these numbers.

        Args:
            kept: layers of a segment that are to stay.
            gone: the others of it; they are random, as everything outside the segment is.
            before: layers of other segments that are already out of the network.

        Raises:
            ScoringError: it is not finite.
        """
        norms = []
        before = set(before)
        for twin in self.twins:
            twin.train(kept)
            states = [(*(j in twin.trained for j in sharing), i in before) for i, sharing in enumerate(twin.sharing)]
            with twin.bypass.without(before), batch_statistics(twin.network):
                norms += [self._score(twin, number, states) for number in range(len(self.batches))]
            if not self.leaks:
                twin.reset()
        score = sum(norms) / len(norms)
        if not math.isfinite(score):
            raise ScoringError(f"the score of layers {list(kept)} is {score}: the loss or its gradient is not finite")
        return score

    def _score(self, twin: "_Twin", number: int, states: list[tuple[bool, ...]]) -> float:
        inputs, target = self.batches[number]
        place = device_of(twin.network)
        with torch.enable_grad(), seeded(self.seed, place), twin.prefix.reuse(number, states):
            backward(self.loss(call(twin.network.train(), inputs), target), again=True)
        return self._of(twin.taken_norms())

    def _of(self, norms: dict[str, Tensor]) -> float:
        """One number of the norms of all parameters' gradients."""
        return float(torch.stack([norm**2 for norm in norms.values()]).sum().sqrt())


class _Twin:
    """A random network whose layers can be given the trained weights and take back their own.

    Its weights cost the memory of one network: a layer is lent the trained parameters themselves, and every gradient is
    dropped as soon as its norm is taken. The graphs of the last passes, one a batch, stay (`PrefixCache`).
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], seed: int, inputs):
        self.network = reinitialized(network, seed).to(device_of(network))
        self.bypass, self.prefix = Bypass(self.network, layers, inputs), PrefixCache(self.network, layers)
        self.trained: set[int] = set()
        self.norms: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:  # all but integers
                parameter.register_post_accumulate_grad_hook(partial(self._take, name))
        # Under all their names: layers may share parameters, which are trained in all of them then.
        trained, own = (dict(one.named_parameters(remove_duplicate=False)) for one in (network, self.network))
        self.random = [(parameter, parameter.data) for parameter in own.values()]
        self.layers = [
            [(own[key], trained[key].data) for path in layer.modules for key in own if key.startswith(f"{path}.")]
            for layer in layers
        ]
        held = [{parameter for parameter, _ in lent} for lent in self.layers]
        self.sharing = [[j for j, other in enumerate(held) if some & other or i == j] for i, some in enumerate(held)]
        # What a pass may change is copied, and not lent.
        buffers, statistics = dict(self.network.named_buffers()), dict(network.named_buffers())
        self.random_buffers = [(buffer, buffer.clone()) for buffer in buffers.values()]
        self.buffers = [
            [(buffers[key], statistics[key]) for path in layer.modules for key in buffers if key.startswith(f"{path}.")]
            for layer in layers
        ]

    def train(self, kept: Iterable[int]) -> None:
        """Give these layers what was trained."""
        torch.clear_autocast_cache()  # which knows a parameter, and not that its data are others now
        self.trained.update(kept)
        for i in kept:
            for parameter, data in self.layers[i]:
                parameter.data = data
            for buffer, values in self.buffers[i]:
                _restore(buffer, values)

    def reset(self) -> None:
        """Everything as it was drawn: the order of the combinations must not matter."""
        torch.clear_autocast_cache()
        self.trained.clear()
        for parameter, data in self.random:
            parameter.data = data
        for buffer, values in self.random_buffers:
            _restore(buffer, values)

    def taken_norms(self) -> dict[str, Tensor]:
        """The norms of the gradients of the last pass, by the parameters' names."""
        norms, self.norms = self.norms, {}
        return norms

    def _take(self, name: str, parameter: Tensor) -> None:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        self.norms[name] = torch.linalg.vector_norm(parameter.grad, dtype=wide).double()
        parameter.grad = None


def _restore(buffer: Tensor, values: Tensor) -> None:
    # A graph that is gone through again allows no writing into what it holds, not even of the same.
    if not torch.equal(buffer, values):
        buffer.copy_(values)


criterion = GradNorm
