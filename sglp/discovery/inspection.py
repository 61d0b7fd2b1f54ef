"""The table of a network's layers: what there is to remove, and what each layer costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.cost import count_macs, count_parameters
from sglp.discovery.find_layers import find_layers
from sglp.running import run_hooked

HEADINGS = ("", "layer", "kind", "output", "parameters", "MACs", "removable")
_TO_THE_RIGHT = ("", "parameters", "MACs")


@dataclass(frozen=True)
class LayerRow:
    """A layer as `find_layers` found it, and what it is.

    Attributes:
        number: its place, from 0, as in the results of the pipeline.
        name: paths of its modules, joined by "+".
        kind: their classes, joined by "+".
        output_shape: of one sample.
        parameters: number of parameters.
        macs: multiply-accumulates for one sample.
        removable: whether it can be left out.
        reason: why not, or "".
    """

    number: int
    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    removable: bool
    reason: str


def inspect(model: nn.Module, example, paths: str | Sequence[str] | None = None) -> list[LayerRow]:
    """The layers of a network in order of execution, with their kinds, output shapes and costs.

    Args:
        model: any module; left as it was.
        example: a tensor [samples, ...], or a dict of keyword arguments.
        paths: as for `find_layers`.

    Raises:
        LayerError: no layers can be told apart.
    """
    layers = find_layers(model, example, paths=paths)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str):
        def hook(module, args, output):
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


def layer_table(model: nn.Module, example, paths: str | Sequence[str] | None = None) -> str:
    """What `inspect` finds as an aligned text, with a line about the whole network below; errors as there."""
    rows = inspect(model, example, paths)
    cells = [HEADINGS]
    for row in rows:
        shape = "x".join(map(str, row.output_shape))
        removable = "yes" if row.removable else f"no: {row.reason}"
        cells.append(
            (str(row.number), row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}", removable),
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(_aligned, HEADINGS, line, widths)).rstrip() for line in cells]
    total = (
        f"{len(rows)} layers, {sum(row.removable for row in rows)} removable; with its head the {type(model).__name__} "
        f"has {count_parameters(model):,} parameters and {count_macs(model, example):,} MACs a sample"
    )
    return "\n".join([*lines, "", total])


def _aligned(heading: str, text: str, width: int) -> str:
    return text.rjust(width) if heading in _TO_THE_RIGHT else text.ljust(width)
