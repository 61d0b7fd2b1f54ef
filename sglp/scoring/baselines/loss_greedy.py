"""Loss, greedy: the layer goes without which the loss is smallest, again and again.

The score is the mean loss over the scoring batches, in eval mode, without the layer and those that went before. In
scores.csv the layers that go come first, in their order; a layer's score is the one of the last time that it was asked
about.

Source: SLEB (arXiv 2402.09025). Shortened LLaMA (arXiv 2402.02834) asks about every layer once, by perplexity.
Cost: forward `B * (r * L - r * (r - 1) / 2) + 1`, backward `0`. The one is of one sample.
Use: where there are labels, or text, and the passes can be paid: it asks for the loss itself. What it finds is the best
before tuning, which need not be the best after it; with few calibration samples it fits them. It never takes a layer
back.
"""

from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.loss import CalibrationLoss
from sglp.scoring.ranking import check_keep, remove_one_by_one


def loss_greedy(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the layer without which the loss is smallest, again and again.

    The arguments are those of every method, see `sglp.scoring.methods`; the rows are those of `remove_one_by_one`.

    Raises:
        ScoringError: there is no batch, or a loss is not finite.
    """
    check_keep(layers, keep)
    criterion = CalibrationLoss(network, layers, batches)
    return remove_one_by_one(layers, lambda gone: -criterion((), gone), keep, "loss greedy")
