"""GradNorm: keep the layers that give a random network the largest gradient.

The network has the original architecture and random weights, except for the layers of the combination, which have their
trained weights. The score is the norm of the loss's gradient in one pass in train mode, sqrt of the sum over all
parameters of ||dL/dp||^2, averaged over batches and random networks.

Source: SGLP (arXiv 2410.14720), section III. The published code never resets the network between combinations and draws
a new batch for each; here all combinations see the same random networks and the same batches.
Cost: forward `C * B * D + D`, backward `C * B * D`. Each random network takes one pass of a single sample, the memory
of a network, and the memory of the graphs of its passes, for every batch.
Use: as the criterion of the paper and the reference for others; with `score.search: independent` or `sequential`. It
tests a segment's layers among random layers, not in the pruned network, and depends on the random weights: average over
several networks (`score.random_inits`).
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sglp.batches import at_least_one
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy, labelled, loss_of
from sglp.running import backward, call, device_of, seeded
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.batchnorm import batch_statistics
from sglp.surgery.bypass import Bypass
from sglp.surgery.random_weights import reinitialized


class GradNorm:
    """The gradient norm of a random network in which a set of layers has its trained weights.

    The norm is sqrt of the sum over all parameters of ||dL/dp||^2, after one backward pass in train mode.

    Args:
        network: the trained network; it is left unchanged.
        layers: as returned by `find_layers`.
        batches: pairs (inputs, target); the score is the mean over them.
        loss: function of the network's output and the target; cross-entropy by default.
        seed: seed of the random weights (see `reinitialized`), and of the random state of every pass (dropout).
        random_inits: number of random networks (seeds `seed`, `seed + 1`, ...) over which the score is averaged.

    Raises:
        ScoringError: `batches` is empty.
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
        self.batches = labelled(network, at_least_one(batches), loss)
        self.loss = loss
        self.seed = seed
        inputs = self.batches[0][0]
        self.random_networks = [_RandomNetwork(network, layers, seed + i, inputs) for i in range(random_inits)]

    def __call__(self, kept: Iterable[int], removed: Iterable[int] = (), already_removed: Iterable[int] = ()) -> float:
        """Return the score of a set of layers, given by their indices.

        Args:
            kept: layers that the segment would keep.
            removed: the other layers of the segment; they are random, like everything outside the segment.
            already_removed: layers that other segments have lost.

        Raises:
            ScoringError: the score is not finite.
        """
        norms = []
        already_removed = set(already_removed)
        for random_network in self.random_networks:
            random_network.load_trained(kept)
            states = [
                (*(j in random_network.trained for j in tied), i in already_removed)
                for i, tied in enumerate(random_network.tied)
            ]
            with random_network.bypass.without(already_removed), batch_statistics(random_network.network):
                norms += [self._score(random_network, batch, states) for batch in range(len(self.batches))]
            if not self.leaks:
                random_network.reset()
        score = sum(norms) / len(norms)
        if not math.isfinite(score):
            raise ScoringError(f"the score of layers {list(kept)} is {score}: the loss or its gradient is not finite")
        return score

    def _score(self, random_network: "_RandomNetwork", batch: int, states: list[tuple[bool, ...]]) -> float:
        inputs, target = self.batches[batch]
        device = device_of(random_network.network)
        with torch.enable_grad(), seeded(self.seed, device), random_network.prefix.reuse(batch, states):
            output = call(random_network.network.train(), inputs)
            backward(loss_of(self.loss, output, target), again=True)
        return self._combine(random_network.pop_norms())

    def _combine(self, norms: dict[str, Tensor]) -> float:
        """Combine the norms of all parameters' gradients into one score."""
        return float(torch.stack([norm**2 for norm in norms.values()]).sum().sqrt())


class _RandomNetwork:
    """A random network whose layers can be given their trained weights and reset to the random ones.

    Its weights take the memory of one network: a layer borrows the trained parameters themselves, and every gradient is
    dropped as soon as its norm is known. The graphs of the last pass of each batch are kept (`PrefixCache`).

    Attributes:
        network: the network.
        trained: indices of the layers that have trained weights.
        tied: for each layer the layers that share parameters with it, itself included.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], seed: int, inputs):
        self.network = reinitialized(network, seed).to(device_of(network))
        self.bypass = Bypass(self.network, layers, inputs)
        self.prefix = PrefixCache(self.network, layers)
        self.trained: set[int] = set()
        self.norms: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:  # all except integers
                parameter.register_post_accumulate_grad_hook(partial(self._store_norm, name))
        # Parameters under all their names: a parameter that layers share is trained in all of them.
        trained = dict(network.named_parameters(remove_duplicate=False))
        own = dict(self.network.named_parameters(remove_duplicate=False))
        self.random_parameters = [(parameter, parameter.data) for parameter in own.values()]
        self.layer_parameters = [
            [(own[key], trained[key].data) for path in layer.modules for key in own if key.startswith(f"{path}.")]
            for layer in layers
        ]
        members = [{parameter for parameter, _ in pairs} for pairs in self.layer_parameters]
        self.tied = [
            [j for j, others in enumerate(members) if parameters & others or i == j]
            for i, parameters in enumerate(members)
        ]
        # Buffers are copied, not borrowed, because a pass may change them.
        trained_buffers = dict(network.named_buffers())
        own_buffers = dict(self.network.named_buffers())
        self.random_buffers = [(buffer, buffer.clone()) for buffer in own_buffers.values()]
        self.layer_buffers = [
            [
                (own_buffers[key], trained_buffers[key])
                for path in layer.modules
                for key in own_buffers
                if key.startswith(f"{path}.")
            ]
            for layer in layers
        ]

    def load_trained(self, layers: Iterable[int]) -> None:
        """Give layers, by their indices, their trained weights."""
        torch.clear_autocast_cache()  # it is keyed by parameter and would miss that the data are replaced
        self.trained.update(layers)
        for i in layers:
            for parameter, data in self.layer_parameters[i]:
                parameter.data = data
            for buffer, values in self.layer_buffers[i]:
                _restore(buffer, values)

    def reset(self) -> None:
        """Restore all random weights, so that the order of the combinations does not matter."""
        torch.clear_autocast_cache()
        self.trained.clear()
        for parameter, data in self.random_parameters:
            parameter.data = data
        for buffer, values in self.random_buffers:
            _restore(buffer, values)

    def pop_norms(self) -> dict[str, Tensor]:
        """Return and forget the norms of the last pass's gradients, by parameter name."""
        norms = self.norms
        self.norms = {}
        return norms

    def _store_norm(self, name: str, parameter: Tensor) -> None:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        self.norms[name] = torch.linalg.vector_norm(parameter.grad, dtype=wide).double()
        parameter.grad = None


def _restore(buffer: Tensor, values: Tensor) -> None:
    # A graph that is used again allows no writes to the tensors it holds, not even of equal values.
    if not torch.equal(buffer, values):
        buffer.copy_(values)


criterion = GradNorm
