"""A layer of a network: the unit that is kept or removed."""

from dataclasses import dataclass

STEM = "stem"


@dataclass(frozen=True)
class Layer:
    """A part of a network that runs once, at a fixed place in the order of execution.

    Attributes:
        name: the path of a module, or the paths of consecutive siblings joined by "+".
        removable: whether the layer can be removed: its input and output have the same shape.
        reason: why the layer can't be removed, or "".
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and matrix products for one sample.
    """

    name: str
    removable: bool
    reason: str
    parameters: int
    macs: int

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the layer's modules."""
        return module_paths(self.name)

    @property
    def is_stem(self) -> bool:
        """Whether the layer is the stem: everything before the first block."""
        return self.reason == STEM


def module_paths(name: str) -> tuple[str, ...]:
    """Split a layer's name into its module paths, which "+" joins."""
    return tuple(name.split("+"))
