"""Scores of a pruning method: for sets of layers that a segment could keep, or for single layers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SetScore:
    """The score of a set of layers that a segment could keep.

    Attributes:
        segment: index of the segment.
        kept: indices of the layers that are kept, in order; layers that can't be removed are included.
        score: the higher the better.
        search: how the set was found: "exhaustive", "beam 4" for a beam of width 4, or the name of the method.
        best: whether the set is the best of its segment (the first one in a tie).
    """

    segment: int
    kept: tuple[int, ...]
    score: float
    search: str
    best: bool


@dataclass(frozen=True)
class LayerScore:
    """The score of a single layer.

    Attributes:
        segment: index of the segment.
        layer: index of the layer.
        score: the higher, the more important the layer.
        search: "joint", or the name of the method.
        kept: whether the plan keeps the layer.
    """

    segment: int
    layer: int
    score: float
    search: str
    kept: bool
