"""Types of the command line's options, and how they are read."""

import json
import os
import sys
from typing import Annotated, Any

import typer


def shape(text: str) -> tuple[int, ...]:
    """Read sizes joined by x, such as 3x224x224."""
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise typer.BadParameter(f"{text!r} is not a shape: write sizes joined by x, such as 3x224x224")
    return tuple(map(int, sizes))


def mapping(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{text!r} is not a JSON object: write names and values, such as '{{\"depth\": 20}}'")
    return content


def cost_share(text: str) -> dict[str, float]:
    """Read a target such as macs=0.5."""
    kind, _, share = text.partition("=")
    try:
        return {kind: float(share)}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a target: write macs=0.5, parameters=0.5 or latency=0.5") from None


def segments(text: str) -> int | str:
    """Read a number of segments, or auto."""
    if text == "auto":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a number of segments: write a number from 1, or auto")
    return int(text)


Trust = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="a factory of your own that a folder may run, such as my_nets:build, or all to run whatever the folder "
        "names; can be repeated",
        show_default=False,
    ),
]
Arguments = Annotated[
    dict | None,
    typer.Option(
        "--kwargs", parser=mapping, metavar="JSON", help="arguments for a factory, such as '{\"num_classes\": 10}'"
    ),
]
InputShape = Annotated[
    tuple | None,
    typer.Option(
        "--input",
        parser=shape,
        metavar="SHAPE",
        help="the shape of one sample without the batch dimension, such as 3x224x224, or the number of tokens; not "
        "needed if a workload's data or a Hugging Face config determines it",
    ),
]


def trusted(names: list[str]) -> bool | list[str]:
    """Return what `sglp.load` takes for `trust`."""
    if names:
        import_from_current_folder()
    return "all" in names or names


def import_from_current_folder() -> None:
    """Make modules in the current folder importable, as `python -m` does."""
    sys.path.append(os.getcwd())


def numbers(text: str) -> list[float]:
    """Read numbers joined by commas."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers: write 0.5, or 0.48,0.46,0.41") from None
