"""Fitted loss: the layers stay with which the loss is smallest once what tuning mends first is mended.

The score is minus the mean over the scoring batches, in eval mode, without the segment's other layers, of the
smallest `loss(s * logits) + (ln s)^2 / (2 N)` over the scale s, where batch norms take the statistics of the batch; N
counts its predictions. The scale is one number, as in temperature scaling, and the second term a standard normal prior
of its logarithm: it fades as N grows, and decides where a batch is fitted without fault; there any larger scale would
be better still, and all layers alike.

Source: of this project; docs/results.md has the evidence. The loss is that of SLEB (arXiv 2402.09025), the scale that
of Guo et al. 2017 (arXiv 1706.04599); batch norm's statistics are renewed as `prune` does it after removal.
Cost: forward `C * B + 1`, backward `0`. The one is of one sample.
Use: as the default, where there are labels, or text. Without layers, statistics no longer fit and logits are too large
or small: the plain `loss` measures that too.
"""

import math

import torch
from scipy.optimize import minimize_scalar

from sglp.running import logits_of
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.surgery.batchnorm import batch_statistics

SCALES = (-8.0, 8.0)  # natural logarithms of the scales that are looked at


class FittedLoss(CalibrationLoss):
    """Scores sets of layers by minus the fitted loss of the trained network without the others of their segment.

    The arguments are those of `CalibrationLoss`; the loss has to take a tensor of logits.
    """

    def _losses(self, states: list[bool]) -> list[float]:
        with batch_statistics(self.network):
            return super()._losses(states)

    def _loss(self, output, target) -> float:
        logits = logits_of(output)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        predictions = logits[..., 0].numel()

        def loss(scale: float) -> float:
            """Of the logarithm of the scale."""
            return float(self.loss(logits * math.exp(scale), target)) + scale**2 / (2 * predictions)

        found = minimize_scalar(loss, bounds=SCALES, method="bounded", options={"xatol": 1e-2})
        return float(found.fun)


criterion = FittedLoss
