"""Loss: the layers stay with which the loss is smallest, before any tuning.

The score is minus the mean loss over the scoring batches, in eval mode, without the segment's other layers.

Source: the rule of SLEB (arXiv 2402.09025) and of Shortened LLaMA's perplexity (arXiv 2402.02834), asked inside a
segment.
Cost: forward `C * B + 1`, backward `0`. The one is of one sample.
Use: where there are labels, or text: it asks for the loss itself, of the network that is left. What it finds is the
best before tuning, which need not be the best after it; with few calibration samples it fits them.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.running import call, device_of, eval_mode
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.bypass import Bypass


class CalibrationLoss:
    """Scores sets of layers by minus the loss of the trained network without the others of their segment.

    Args:
        network: the trained network; left as it was.
        layers: what `find_layers` found.
        batches: pairs (inputs, target); the score is the mean over them.
        loss: of the network's output and the target; cross-entropy by default.
        seed, random_inits: not used, nothing is drawn.

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
        random_inits: int = 1,
    ):
        device = device_of(network)
        self.batches = [to_device(batch, device) for batch in at_least_one(batches)]
        self.network, self.loss = network, loss
        self.bypass, self.prefix = Bypass(network, layers, inputs_of(self.batches[0])), PrefixCache(network, layers)
        self.numbers = range(len(layers))

    def __call__(self, kept: Iterable[int], gone: Iterable[int], before: Iterable[int] = ()) -> float:
        """Minus the loss without the layers `gone`, and `before`, which are out already.

        Raises:
            ScoringError: it is not finite.
        """
        out = {*gone, *before}
        with self.bypass.without(out), eval_mode(self.network), torch.no_grad():
            losses = self._losses([i in out for i in self.numbers])
        score = -sum(losses) / len(losses)
        if not math.isfinite(score):
            raise ScoringError(f"the loss without layers {sorted(out)} is {-score}: it must be finite")
        return score

    def _losses(self, states: list[bool]) -> list[float]:
        """One a batch; the states say of each layer whether it is out."""
        losses = []
        for number, (inputs, target) in enumerate(self.batches):
            with self.prefix.reuse(number, states):
                output = call(self.network, inputs)
            losses.append(self._loss(output, target))
        return losses

    def _loss(self, output, target) -> float:
        return float(self.loss(output, target))


criterion = CalibrationLoss
