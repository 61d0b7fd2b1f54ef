"""``sglp inspect``: the table of a network's layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglp.commands.options import Arguments, InputShape, Trust, import_from_current_folder, trusted
from sglp.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="the name of a workload, a factory (package.module:function), or a folder that sglp.save wrote",
        ),
    ],
    kwargs: Arguments = None,
    input: InputShape = None,
    trust: Trust = [],  # noqa: B006  # typer needs a list
) -> None:
    """List the layers of a network, their cost, and which can be removed.

    \b
    examples:
      sglp inspect resnet56-digits                                  a workload, models/resnet56-digits.yaml
      sglp inspect torchvision.models:resnet50 --input 3x224x224    a factory
      sglp inspect my_nets:build --kwargs '{"width": 32}' --input 16
      sglp inspect data/finetuned --input 1x8x8                     a folder that sglp.save wrote
    """
    from sglp.discovery.inspection import layer_table

    network, example, paths = _open(model, kwargs, input, trust)
    print(layer_table(network, example, paths))


def _open(
    model: str, kwargs: dict | None, shape: tuple[int, ...] | None, trust: list[str]
) -> tuple["nn.Module", Any, str | Sequence[str] | None]:
    """Return the network, an example input, and the layer paths that the workload declares, if any."""
    folder, workload = Path(model), Path("models") / f"{model}.yaml"
    if kwargs is not None and ":" not in model:
        raise ArchitectureError(f"--kwargs needs a factory (package.module:function), and {model} is not one")
    if ":" in model:
        from sglp.architecture import build
        from sglp.exporting.example_input import example_input

        import_from_current_folder()
        network = build(model, kwargs, seed=0)
        return network, example_input(network, shape), None
    if folder.is_dir():
        from sglp.checkpoints.checkpoint import load
        from sglp.exporting.example_input import example_input

        network = load(folder, trust=trusted(trust))
        return network, example_input(network, shape), None
    if workload.is_file():
        try:
            from sglp.tasks.opening import open_workload, read_workload
        except ImportError as error:
            raise ArchitectureError(
                f"reading {workload} needs {error.name}: run pip install 'sglp[pipeline]'"
            ) from error
        import_from_current_folder()
        content = read_workload(workload)
        return *open_workload(content, shape), content.layers
    raise ArchitectureError(
        f"{model} is not a factory (package.module:function), a folder or a workload: {workload} does not exist"
    )
