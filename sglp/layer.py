"""A layer of a network: the unit that is kept or removed."""

from dataclasses import dataclass

STEM = "stem"
BRANCH = ":branch"  # at the end of a path in a layer's name


@dataclass(frozen=True)
class Layer:
    """A part of a network that runs once, at a fixed place in the order of execution.

    Attributes:
        name: the path of a module, or the paths of modules that run one after another, joined by "+". A path ends in
            ":branch" if the parent adds the module's output to a residual stream, as in x = x + block(x): without the
            layer, nothing is added. The stream is the input of the module, or of the modules before it in the name.
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
    return tuple(path.removesuffix(BRANCH) for path in name.split("+"))


def branch_paths(name: str) -> tuple[str, ...]:
    """Return the paths of the modules in a layer's name whose outputs the parent adds to a residual stream."""
    return tuple(path.removesuffix(BRANCH) for path in name.split("+") if path.endswith(BRANCH))


def branch_ends(name: str) -> tuple[int, ...]:
    """Return the indices of the modules in a layer's name whose outputs the parent adds to a residual stream."""
    return tuple(i for i, path in enumerate(name.split("+")) if path.endswith(BRANCH))


def branch_start(name: str) -> str:
    """Return the path of the module whose input the parent adds to the layer's last output, or "" if it adds none."""
    parts = name.split("+")
    if not parts[-1].endswith(BRANCH):
        return ""
    earlier = [i for i, part in enumerate(parts[:-1]) if part.endswith(BRANCH)]
    return parts[earlier[-1] + 1 if earlier else 0].removesuffix(BRANCH)
