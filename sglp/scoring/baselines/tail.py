"""Tail: the last layers go.

Of the layers that can go, the last ones do. The score of a layer is minus its number.

Source: Reassessing Layer Pruning in LLMs (arXiv 2411.15558), where the last 25 % of an LLM's layers go and the output
and the last layers that stay are tuned.
Cost: forward `0`, backward `0`.
Use: with language models, as the simplest rule to beat; it needs no data, and fine-tuning has to follow. It looks at
nothing: where a network's last layers do much of the work, it destroys it. In a CNN it empties the last stage first.
"""

from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def tail(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[LayerScore]]:
    """Remove the last removable layers; a layer's score falls with its depth.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    return keep_best(layers, [float(-i) for i in range(len(layers))], keep, "tail")
