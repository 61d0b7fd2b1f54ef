"""What a method scored: sets of layers that a segment could keep, or layers one by one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SetScore:
    """A set of layers that a segment could keep.

    Attributes:
        segment: index of the segment.
        kept: indices of the layers that are kept, in order; layers that can't be removed are included.
        score: the higher the better.
        search: how the set was found: "exhaustive", or "beam 4" for a beam of width 4; a method's name.
        best: whether the set is the segment's best (the first of equal ones).
    """

    segment: int
    kept: tuple[int, ...]
    score: float
    search: str
    best: bool


@dataclass(frozen=True)
class LayerScore:
    """A single layer, where layers are scored one by one.

    Attributes:
        segment: index of the segment.
        layer: index of the layer.
        score: the higher, the more the layer is worth.
        search: "joint", or the method's name.
        kept: whether the plan keeps the layer.
    """

    segment: int
    layer: int
    score: float
    search: str
    kept: bool
