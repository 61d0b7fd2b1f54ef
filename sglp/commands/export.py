"""``sglp export``: one file that other programs run."""

from pathlib import Path
from typing import Annotated

import typer

from sglp.commands.options import InputShape, Trust, trusted


def export(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="a folder that sglp.save wrote, pruned or not")],
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="the file to write (default: FOLDER plus the extension of the format)"),
    ] = None,
    *,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="the format: onnx, torch-export or gguf")],
    input: InputShape = None,
    trust: Trust = [],  # noqa: B006  # typer needs a list
) -> None:
    """Export a saved network to one file that other programs run.

    \b
    examples:
      sglp export data/finetuned --to onnx --input 3x224x224        writes data/finetuned.onnx
      sglp export data/finetuned small.pt2 --to torch-export --input 3x224x224
      sglp export data/finetuned --to gguf                          a language model, for llama.cpp
    """
    from sglp.exporting.export import export as write
    from sglp.exporting.export import file_beside

    target = file or file_beside(folder, to)
    write(folder, target, to, input, trusted(trust))
    print(f"{target} ({Path(target).stat().st_size / 1e6:,.1f} MB)")
