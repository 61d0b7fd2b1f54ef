"""The table of a network's layers: which can be removed, and what each one costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.cost import count_macs, count_parameters
from sglp.cutting import Inputs
from sglp.discovery.find_layers import find_layers
from sglp.running import run_hooked

HEADINGS = ("", "layer", "kind", "output", "parameters", "MACs", "removable")
_RIGHT_ALIGNED = ("", "parameters", "MACs")


@dataclass(frozen=True)
class LayerRow:
    """A layer that `find_layers` returned, with its class and its output shape.

    Attributes:
        number: the layer's index, from 0, as in the results of the pipeline.
        name: paths of the layer's modules, joined by "+".
        kind: classes of these modules, joined by "+".
        output_shape: shape of one sample's output.
        parameters: number of parameters.
        macs: multiply-accumulates for one sample.
        removable: whether the layer can be removed.
        reason: why the layer can't be removed, or "".
    """

    number: int
    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    removable: bool
    reason: str


def inspect(model: nn.Module, example: Inputs, paths: str | Sequence[str] | None = None) -> list[LayerRow]:
    """List the layers of a network in order of execution, with their classes, output shapes and costs.

    Args:
        model: any module; left unchanged.
        example: a tensor [samples, ...], or a dict of keyword arguments.
        paths: as for `find_layers`.

    Raises:
        LayerError: no layers can be distinguished.
    """
    layers = find_layers(model, example, paths=paths)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            shapes[path] = next((tuple(leaf.shape[1:]) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), ())

        return hook

    ends = [layer.modules[-1] for layer in layers]
    run_hooked(model, example, [model.get_submodule(path).register_forward_hook(note(path)) for path in ends])
    return [
        LayerRow(
            number,
            layer.name,
            "+".join(type(model.get_submodule(path)).__name__ for path in layer.modules),
            shapes[layer.modules[-1]],
            layer.parameters,
            layer.macs,
            layer.removable,
            layer.reason,
        )
        for number, layer in enumerate(layers)
    ]


def layer_table(model: nn.Module, example: Inputs, paths: str | Sequence[str] | None = None) -> str:
    """Format the layers as an aligned table, with a line about the whole network below.

    Arguments and errors are those of `inspect`.
    """
    rows = inspect(model, example, paths)
    cells = [HEADINGS]
    for row in rows:
        shape = "x".join(map(str, row.output_shape))
        removable = "yes" if row.removable else f"no: {row.reason}"
        cells.append((str(row.number), row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}", removable))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(_aligned, HEADINGS, line, widths)).rstrip() for line in cells]
    total = (
        f"{len(rows)} layers, {sum(row.removable for row in rows)} removable; including its head, the "
        f"{type(model).__name__} has {count_parameters(model):,} parameters and "
        f"{count_macs(model, example):,} MACs per sample"
    )
    return "\n".join([*lines, "", total])


def _aligned(heading: str, text: str, width: int) -> str:
    return text.rjust(width) if heading in _RIGHT_ALIGNED else text.ljust(width)
