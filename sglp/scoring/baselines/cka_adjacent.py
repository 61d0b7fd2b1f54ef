"""CKA of neighbours: remove the layers whose output is most similar to the previous layer's output.

The score of a layer is 1 - CKA between its output and the previous layer's output, as computed by the stage cka; the
layers with the lowest scores are removed. The first layer has no previous layer: its score is 1.

Source: RedTest (arXiv 2411.10507), by authors of SGLP.
Cost: forward `0`, backward `0`. The similarity of the layers has been computed already.
Use: where the similarity is computed anyway: it costs nothing more. It measures how a layer's output changes, not how
later layers respond, and it may remove a whole row of similar layers. The biased CKA of few samples makes wide layers
look similar.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def cka_adjacent(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers with the highest CKA to the previous layer.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    scores = [1.0, *(1 - float(similarity[i - 1][i]) for i in range(1, len(layers)))]
    return keep_best(layers, scores, keep, "cka adjacent")
