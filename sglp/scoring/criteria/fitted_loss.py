"""Fitted loss: keep the layers with the lowest loss after refitting batch-norm statistics and the logit scale.

Fine-tuning would fix both first anyway. The score is minus the mean over the scoring batches, in eval mode, without the
segment's other layers, of the minimum of `loss(s * logits) + (ln s)^2 / (2 N)` over the scale s, where batch norms use
the statistics of the batch and N is the number of predictions in it. The scale is a single number, as in temperature
scaling; the second term is a standard normal prior of its logarithm. The prior fades as N grows, and decides where all
predictions of a batch are correct: without it, any larger scale would be better still, and all layers would score
alike.

Source: this project; docs/results.md has the evidence. The loss is that of SLEB (arXiv 2402.09025), the scale that of
Guo et al. 2017 (arXiv 1706.04599); batch-norm statistics are refitted as `prune` does it after removal.
Cost: forward `C * B + 1`, backward `0`. One of the passes uses a single sample.
Use: with labels, or text. When layers are removed, statistics no longer fit and logits are too large or
too small: the plain `loss` measures that too.
"""

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar

from sglp.loss import loss_of, number_of_predictions
from sglp.running import holds_logits, logits_of, with_logits
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.surgery.batchnorm import batch_statistics

LOG_SCALES = (-8.0, 8.0)  # bounds of the natural logarithm of the scale


class FittedLoss(CalibrationLoss):
    """Minus the fitted loss of the trained network without the other layers of a segment.

    The arguments are those of `CalibrationLoss`. Where the output holds no logits, there is no scale to fit.
    """

    def _losses(self, states: list[bool]) -> list[float]:
        with batch_statistics(self.network):
            return super()._losses(states)

    def _loss(self, output: Any, inputs: Any, target: Any) -> float:
        if not holds_logits(output):
            return super()._loss(output, inputs, target)
        logits = logits_of(output)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        num_predictions = number_of_predictions(output, inputs, target)

        def penalised_loss(log_scale: float) -> float:
            scaled = with_logits(output, logits * math.exp(log_scale))
            return float(loss_of(self.loss, scaled, target)) + log_scale**2 / (2 * num_predictions)

        minimum = minimize_scalar(penalised_loss, bounds=LOG_SCALES, method="bounded", options={"xatol": 1e-2})
        return float(minimum.fun)


criterion = FittedLoss
