"""CKA, greedy: repeatedly remove the layer whose removal changes the final features least.

The score is that of `cka`, 1 - CKA(R, R_l), where R_l are the features without the layer l and without all layers
removed before it. R is always computed by the trained network, as nothing is fine-tuned in between. In scores.csv the
removed layers come first, in order of removal; a layer's score is the one from the last time that it was tested.

Source: Pons et al., Effective Layer Pruning Through Similarity Metric Perspective (arXiv 2405.17081), which fine-tunes
after every layer and compares with the fine-tuned network.
Cost: forward `B * (r * L - r * (r - 1) / 2 + 1) + 2`, backward `0`. Two of the passes use a single sample.
Use: without labels, where about r times the passes of `cka` are affordable. It sees which layers need each other only
one step ahead, and never puts a layer back. CKA has the blind spots described at `cka`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.scoring.ranking import check_keep, remove_one_by_one


def cka_greedy(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Repeatedly remove the layer with the smallest 1 - CKA.

    The arguments are those of every method, see `sglp.scoring.methods`; the rows are those of `remove_one_by_one`.

    Raises:
        ScoringError: `batches` is empty.
        SimilarityError: a batch has fewer than 4 rows, or features are not finite.
    """
    check_keep(layers, keep)
    criterion = CkaOutput(network, layers, batches)
    return remove_one_by_one(layers, lambda removed: 1 - criterion((), removed), keep, "cka greedy")
