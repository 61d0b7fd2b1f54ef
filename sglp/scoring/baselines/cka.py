"""CKA: remove, in one shot, the layers whose removal changes the final features least.

With R the features before the classifier and R_l the features without the layer l, the score is 1 - CKA(R, R_l); the
layers with the lowest scores are removed. CKA is linear and unbiased; its HSIC terms are averaged over the batches. A
row of R is a sample, or a token.

Source: Pons et al., Effective Layer Pruning Through Similarity Metric Perspective (arXiv 2405.17081), one-shot; the
published code uses the biased CKA of all samples at once.
Cost: forward `(L + 1) * B + 2`, backward `0`. Two of the passes use a single sample.
Use: without labels: it measures how the whole network responds to the removal of a layer. Each layer is tested alone:
two layers that can replace each other both look dispensable, and both are removed; `cka_greedy` avoids that. CKA does
not see a change of scale or a rotation of the features, but the classifier does until it is fine-tuned.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.distributed.processes import shared_map
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.scoring.ranking import check_keep, keep_best


def cka(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers with the smallest 1 - CKA; a layer that can't be removed has score 0.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: `batches` is empty.
        SimilarityError: a batch has fewer than 4 rows, or features are not finite.
    """
    check_keep(layers, keep)
    criterion = CkaOutput(network, layers, batches)
    scores = [0.0] * len(layers)
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    similarities = shared_map(lambda i: criterion((), [i]), removable, desc="cka", unit="")
    for i, value in zip(removable, similarities, strict=True):
        scores[i] = 1 - value
    return keep_best(layers, scores, keep, "cka")
