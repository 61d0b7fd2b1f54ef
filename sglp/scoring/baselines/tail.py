"""Tail: remove the last layers.

The last of the removable layers are removed. The score of a layer is minus its index.

Source: Reassessing Layer Pruning in LLMs (arXiv 2411.15558), which removes the last 25 % of an LLM's layers and
fine-tunes the output and the last layers that are kept.
Cost: forward `0`, backward `0`.
Use: with language models, as the simplest rule to beat; it needs no data, and fine-tuning has to follow. It ignores
what layers do: where a network's last layers do much of the work, it destroys the network. In a CNN it empties the last
stage first.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.ranking import keep_best


def tail(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the last removable layers; the deeper a layer, the lower its score.

    The arguments are those of every method; see `sglp.scoring.methods`.
    """
    return keep_best(layers, [float(-i) for i in range(len(layers))], keep, "tail")
