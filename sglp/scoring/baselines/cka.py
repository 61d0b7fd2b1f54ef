"""CKA: layers go without which the final features change least, all at once.

With R the features before the classifier and R_l those without the layer l, the score is 1 - CKA(R, R_l); the smallest
go. CKA is linear and unbiased; its HSIC terms are averaged over the batches. A row of R is a sample, or a token.

Source: Pons et al., Effective Layer Pruning Through Similarity Metric Perspective (arXiv 2405.17081), one-shot; the
published code takes the biased CKA of all samples at once.
Cost: forward `(L + 1) * B + 2`, backward `0`. The two are of one sample.
Use: where there are no labels: it asks what the whole network makes of the absence of a layer. Every layer is asked
alone: two that can stand in for each other both look dispensable, and both go; `cka_greedy` sees that. CKA does not see
a change of scale, or a rotation of the features, but the classifier does before it is tuned.
"""

from sglp.distributed.processes import shared_map
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.scoring.ranking import check_keep, keep_best


def cka(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers of the smallest 1 - CKA; the score of one that can't go is 0.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: there is no batch.
        SimilarityError: a batch has fewer than 4 rows, or features are not finite.
    """
    check_keep(layers, keep)
    criterion, scores = CkaOutput(network, layers, batches), [0.0] * len(layers)
    free = [i for i, layer in enumerate(layers) if layer.removable]
    for i, found in zip(free, shared_map(lambda i: criterion((), [i]), free, desc="cka", unit=""), strict=True):
        scores[i] = 1 - found
    return keep_best(layers, scores, keep, "cka")
