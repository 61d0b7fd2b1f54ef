"""CKA of neighbours: layers go whose output is most like that of the layer before.

The score of a layer is 1 - CKA of its output and that of the layer before, as the stage cka found it; the smallest go.
The first layer has none before it: its score is 1.

Source: RedTest (arXiv 2411.10507), by authors of SGLP.
Cost: forward `0`, backward `0`. The similarity of the layers is there already.
Use: where the similarity is computed anyway: it costs nothing more. It sees a layer's output change, not what the
layers after it make of that, and of a row of layers that are all alike it may take every one. Biased CKA of few samples
makes wide layers look alike.
"""

from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def cka_adjacent(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers of the highest CKA to the layer before.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    scores = [1.0, *(1 - float(similarity[i - 1][i]) for i in range(1, len(layers)))]
    return keep_best(layers, scores, keep, "cka adjacent")
