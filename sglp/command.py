"""The command line: ``sglp inspect`` and ``sglp export``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sglp.errors import ArchitectureError, SGLPError

_EXAMPLES = {
    "inspect": """examples:
  sglp inspect resnet56-digits                                  a workload, models/resnet56-digits.yaml
  sglp inspect torchvision.models:resnet50 --input 3x224x224    a factory
  sglp inspect my_nets:build --kwargs '{"width": 32}' --input 16
  sglp inspect data/finetuned --input 1x8x8                     what sglp.save wrote""",
    "export": """examples:
  sglp export data/finetuned --to onnx --input 3x224x224        writes data/finetuned.onnx
  sglp export data/finetuned small.pt2 --to torch-export --input 3x224x224
  sglp export data/finetuned --to gguf                          of a language model, for llama.cpp""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what the user can mend is told in one sentence, with exit status 1."""
    told = _parser().parse_args(arguments)
    try:
        told.run(told)
    except SGLPError as error:
        sys.exit(f"sglp {told.command}: {error}")
    except BrokenPipeError:  # of what reads the table, as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sglp", description="Remove whole layers from a trained network.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = _command(commands, "inspect", _inspect, "the table of a network's layers, and which can be removed")
    inspect.add_argument(
        "model", metavar="MODEL", help="a workload's name, a factory as package.module:function, or a saved folder"
    )
    inspect.add_argument(
        "--kwargs", type=_mapping, metavar="JSON", help="arguments of a factory, as '{\"num_classes\": 10}'"
    )

    export = _command(commands, "export", _export, "a saved network as one file that other programs run")
    export.add_argument("folder", metavar="FOLDER", help="what sglp.save wrote, pruned or not")
    export.add_argument("file", metavar="FILE", nargs="?", help="default: FOLDER with the format's ending")
    export.add_argument("--to", required=True, metavar="FORMAT", help="onnx, torch-export or gguf")

    for command in (inspect, export):
        command.add_argument(
            "--input",
            type=_shape,
            metavar="SHAPE",
            help="of one sample, without the batch: 3x224x224, or the number of tokens; not needed where a workload's "
            "data or a config of transformers tells",
        )
        command.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="NAME",
            help="a factory of yours that a folder may run, as my_nets:build; all for whatever the folder brings",
        )
    return parser


def _command(commands, name: str, run, said: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=said,
        description=f"{said[0].upper()}{said[1:]}.",
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _inspect(told: argparse.Namespace) -> None:
    from sglp.discovery.inspection import layer_table

    network, example, paths = _opened(told)
    print(layer_table(network, example, paths))


def _opened(told: argparse.Namespace):
    """The network, an input, and which paths are layers where a workload says so."""
    model, folder, workload = told.model, Path(told.model), Path("models") / f"{told.model}.yaml"
    if told.kwargs is not None and ":" not in model:
        raise ArchitectureError(f"--kwargs are arguments of a factory, and {model} is none (package.module:function)")
    if ":" in model:
        from sglp.architecture import build
        from sglp.exporting.example_input import example_input

        _allow_code_here()
        network = build(model, told.kwargs, seed=0)
        return network, example_input(network, told.input), None
    if folder.is_dir():
        from sglp.checkpoints.checkpoint import load
        from sglp.exporting.example_input import example_input

        network = load(folder, trust=_trusted(told))
        return network, example_input(network, told.input), None
    if workload.is_file():
        try:
            from sglp.tasks.opening import open_workload, read_workload
        except ImportError as error:
            raise ArchitectureError(
                f"to read {workload} {error.name} is needed: pip install 'sglp[pipeline]'"
            ) from error
        _allow_code_here()
        content = read_workload(workload)
        return *open_workload(content, told.input), content.layers
    raise ArchitectureError(
        f"{model} is no factory (package.module:function), no folder and no workload: there is no {workload}"
    )


def _export(told: argparse.Namespace) -> None:
    from sglp.exporting.export import export, file_beside

    file = told.file or file_beside(told.folder, told.to)
    export(told.folder, file, told.to, told.input, _trusted(told))
    print(f"{file} ({Path(file).stat().st_size / 1e6:,.1f} MB)")


def _trusted(told: argparse.Namespace) -> bool | list[str]:
    if told.trust:
        _allow_code_here()
    return "all" in told.trust or told.trust


def _allow_code_here() -> None:
    """Let modules in the current folder be found, as `python -m` does."""
    sys.path.append(os.getcwd())


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: write sizes with x between them, as 3x224x224")
    return tuple(map(int, sizes))


def _mapping(text: str) -> dict:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object: write names and values, as '{{\"depth\": 20}}'")
    return content
