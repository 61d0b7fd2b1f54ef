"""A layer of a network: the unit that is kept or removed."""

from dataclasses import dataclass

STEM = "stem"


@dataclass(frozen=True)
class Layer:
    """A part of a network that runs once, in order.

    Attributes:
        name: module paths joined by "+": one, or a run of siblings.
        removable: whether it maps a tensor to one of the same shape, so that it can be left out.
        reason: why not, or "" where it is removable.
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and matrix products, for one sample.
    """

    name: str
    removable: bool
    reason: str
    parameters: int
    macs: int

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of its modules."""
        return module_paths(self.name)

    @property
    def is_stem(self) -> bool:
        """Whether it is what comes before the first block."""
        return self.reason == STEM


def module_paths(name: str) -> tuple[str, ...]:
    """The module paths in a layer's name: one path, or a run of siblings joined by "+"."""
    return tuple(name.split("+"))
