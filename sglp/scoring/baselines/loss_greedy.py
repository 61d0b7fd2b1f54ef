"""Loss, greedy: repeatedly remove the layer whose removal gives the lowest loss.

The score is the mean loss over the scoring batches, in eval mode, without the layer and without all layers removed
before it. In scores.csv the removed layers come first, in order of removal; a layer's score is the one from the last
time that it was tested.

Source: SLEB (arXiv 2402.09025). Shortened LLaMA (arXiv 2402.02834) tests every layer once, by perplexity.
Cost: forward `B * (r * L - r * (r - 1) / 2) + 1`, backward `0`. One of the passes uses a single sample.
Use: with labels, or text, where the passes are affordable: it measures the loss itself. It finds the best network
before fine-tuning, which need not be the best after it, and with few calibration samples it overfits them. It never
puts a layer back.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.scoring.ranking import check_keep, remove_one_by_one


def loss_greedy(
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
    """Repeatedly remove the layer whose removal gives the lowest loss.

    The arguments are those of every method, see `sglp.scoring.methods`; the rows are those of `remove_one_by_one`.
    `loss` is called as loss(output, target).

    Raises:
        ScoringError: `batches` is empty, or a loss is not finite.
    """
    check_keep(layers, keep)
    criterion = CalibrationLoss(network, layers, batches, loss)
    return remove_one_by_one(layers, lambda removed: -criterion((), removed), keep, "loss greedy")
