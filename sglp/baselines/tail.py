"""Tail: the last removable layers go. The simplest rule, and for LLMs the one to beat (arXiv 2411.15558)."""

from sglp.baselines.ranking import keep_best
from sglp.plan import Plan
from sglp.scoring import Combination


def tail(network, layers, segments, similarity, batches, keep: int, seed: int) -> tuple[Plan, list[Combination]]:
    """Remove the last removable layers; a layer's score falls with its depth.

    The arguments are those of every method; see `sglp.methods`.
    """
    return keep_best(layers, [float(-i) for i in range(len(layers))], keep, "tail")
