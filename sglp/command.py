"""The command line: ``sglp inspect`` and ``sglp export``."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglp.errors import ArchitectureError, SGLPError

if TYPE_CHECKING:
    from torch import nn

_EXAMPLES = {
    "inspect": """examples:
  sglp inspect resnet56-digits                                  a workload, models/resnet56-digits.yaml
  sglp inspect torchvision.models:resnet50 --input 3x224x224    a factory
  sglp inspect my_nets:build --kwargs '{"width": 32}' --input 16
  sglp inspect data/finetuned --input 1x8x8                     a folder that sglp.save wrote""",
    "export": """examples:
  sglp export data/finetuned --to onnx --input 3x224x224        writes data/finetuned.onnx
  sglp export data/finetuned small.pt2 --to torch-export --input 3x224x224
  sglp export data/finetuned --to gguf                          a language model, for llama.cpp""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; report an error that the user can fix in one sentence, with exit status 1."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except SGLPError as error:
        sys.exit(f"sglp {args.command}: {error}")
    except BrokenPipeError:  # the reader of the table, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sglp", description="Remove whole layers from a trained network.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = _add_command(
        commands, "inspect", _inspect, "list the layers of a network, their cost, and which can be removed"
    )
    inspect.add_argument(
        "model",
        metavar="MODEL",
        help="the name of a workload, a factory (package.module:function), or a folder that sglp.save wrote",
    )
    inspect.add_argument(
        "--kwargs", type=_mapping, metavar="JSON", help="arguments for the factory, such as '{\"num_classes\": 10}'"
    )

    export = _add_command(commands, "export", _export, "export a saved network to one file that other programs run")
    export.add_argument("folder", metavar="FOLDER", help="a folder that sglp.save wrote, pruned or not")
    export.add_argument(
        "file", metavar="FILE", nargs="?", help="the file to write (default: FOLDER plus the extension of the format)"
    )
    export.add_argument("--to", required=True, metavar="FORMAT", help="the format: onnx, torch-export or gguf")

    for command in (inspect, export):
        command.add_argument(
            "--input",
            type=_shape,
            metavar="SHAPE",
            help="the shape of one sample without the batch dimension, such as 3x224x224, or the number of tokens; not "
            "needed if a workload's data or a Hugging Face config determines it",
        )
        command.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="NAME",
            help="a factory of your own that the folder may run, such as my_nets:build, or all to run whatever the "
            "folder names; can be repeated",
        )
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _inspect(args: argparse.Namespace) -> None:
    from sglp.discovery.inspection import layer_table

    network, example, paths = _open_model(args)
    print(layer_table(network, example, paths))


def _open_model(args: argparse.Namespace) -> tuple["nn.Module", Any, str | Sequence[str] | None]:
    """Return the network, an example input, and the layer paths that the workload declares, if any."""
    model, folder, workload = args.model, Path(args.model), Path("models") / f"{args.model}.yaml"
    if args.kwargs is not None and ":" not in model:
        raise ArchitectureError(f"--kwargs needs a factory (package.module:function), and {model} is not one")
    if ":" in model:
        from sglp.architecture import build
        from sglp.exporting.example_input import example_input

        _import_from_current_folder()
        network = build(model, args.kwargs, seed=0)
        return network, example_input(network, args.input), None
    if folder.is_dir():
        from sglp.checkpoints.checkpoint import load
        from sglp.exporting.example_input import example_input

        network = load(folder, trust=_trusted(args))
        return network, example_input(network, args.input), None
    if workload.is_file():
        try:
            from sglp.tasks.opening import open_workload, read_workload
        except ImportError as error:
            raise ArchitectureError(
                f"reading {workload} needs {error.name}: run pip install 'sglp[pipeline]'"
            ) from error
        _import_from_current_folder()
        content = read_workload(workload)
        return *open_workload(content, args.input), content.layers
    raise ArchitectureError(
        f"{model} is not a factory (package.module:function), a folder or a workload: {workload} does not exist"
    )


def _export(args: argparse.Namespace) -> None:
    from sglp.exporting.export import export, file_beside

    file = args.file or file_beside(args.folder, args.to)
    export(args.folder, file, args.to, args.input, _trusted(args))
    print(f"{file} ({Path(file).stat().st_size / 1e6:,.1f} MB)")


def _trusted(args: argparse.Namespace) -> bool | list[str]:
    if args.trust:
        _import_from_current_folder()
    return "all" in args.trust or args.trust


def _import_from_current_folder() -> None:
    """Make modules in the current folder importable, as `python -m` does."""
    sys.path.append(os.getcwd())


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write sizes joined by x, such as 3x224x224")
    return tuple(map(int, sizes))


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a JSON object: write names and values, such as '{{\"depth\": 20}}'"
        )
    return content
