"""Loss: keep the layers with the lowest loss before any fine-tuning.

The score is minus the mean loss over the scoring batches, in eval mode, without the segment's other layers.

Source: the rule of SLEB (arXiv 2402.09025) and of Shortened LLaMA's perplexity (arXiv 2402.02834), applied within a
segment.
Cost: forward `C * B + 1`, backward `0`. One of the passes uses a single sample.
Use: with labels, or text: it measures the loss of the pruned network itself. It finds the best network before
fine-tuning, which need not be the best after it, and with few calibration samples it overfits them.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sglp.batches import at_least_one
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy, labelled, loss_of
from sglp.running import call, eval_mode
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.bypass import Bypass


class CalibrationLoss:
    """Minus the loss of the trained network without the other layers of a segment.

    Args:
        network: the trained network; it is left unchanged.
        layers: as returned by `find_layers`.
        batches: pairs (inputs, target); the score is the mean over them.
        loss: function of the network's output and the target; cross-entropy by default.
        seed, random_inits: not used, as nothing is drawn.

    Raises:
        ScoringError: `batches` is empty.
    """

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
        self.network = network
        self.loss = loss
        self.bypass = Bypass(network, layers, self.batches[0][0])
        self.prefix = PrefixCache(network, layers)
        self.num_layers = len(layers)

    def __call__(self, kept: Iterable[int], removed: Iterable[int], already_removed: Iterable[int] = ()) -> float:
        """Return minus the loss without the layers `removed` and `already_removed`.

        Raises:
            ScoringError: the loss is not finite.
        """
        missing = {*removed, *already_removed}
        with self.bypass.without(missing), eval_mode(self.network), torch.no_grad():
            losses = self._losses([i in missing for i in range(self.num_layers)])
        score = -sum(losses) / len(losses)
        if not math.isfinite(score):
            raise ScoringError(f"the loss without layers {sorted(missing)} is {-score}: it must be finite")
        return score

    def _losses(self, states: list[bool]) -> list[float]:
        """Return one loss per batch; the states say for each layer whether it is removed."""
        losses = []
        for i, (inputs, target) in enumerate(self.batches):
            with self.prefix.reuse(i, states):
                output = call(self.network, inputs)
            losses.append(self._loss(output, inputs, target))
        return losses

    def _loss(self, output: Any, inputs: Any, target: Any) -> float:
        return float(loss_of(self.loss, output, target))


criterion = CalibrationLoss
