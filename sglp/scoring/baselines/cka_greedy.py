"""CKA, greedy: the layer goes without which the final features change least, again and again.

The score is that of `cka`, 1 - CKA(R, R_l), where R_l are the features without the layer l and those that went before.
R stays that of the trained network, as nothing is tuned in between. In scores.csv the layers that go come first, in
their order; a layer's score is the one of the last time that it was asked about.

Source: Pons et al., Effective Layer Pruning Through Similarity Metric Perspective (arXiv 2405.17081), which fine-tunes
after every layer and compares with the tuned network.
Cost: forward `B * (r * L - r * (r - 1) / 2 + 1) + 2`, backward `0`. The two are of one sample.
Use: where there are no labels and about r times the passes of `cka` are no matter. It sees which layers need each other
only one step ahead, and never takes a layer back. What CKA does not see is said at `cka`.
"""

from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.scoring.ranking import check_keep, remove_one_by_one


def cka_greedy(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the layer of the smallest 1 - CKA, again and again.

    The arguments are those of every method, see `sglp.scoring.methods`; the rows are those of `remove_one_by_one`.

    Raises:
        ScoringError: there is no batch.
        SimilarityError: a batch has fewer than 4 rows, or features are not finite.
    """
    check_keep(layers, keep)
    criterion = CkaOutput(network, layers, batches)
    return remove_one_by_one(layers, lambda gone: 1 - criterion((), gone), keep, "cka greedy")
