"""Export networks to any supported format; each file is verified against the network before it appears."""

import copy
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm import tqdm

from sglp.arguments import as_arguments
from sglp.batches import to_device
from sglp.checkpoints.checkpoint import load
from sglp.errors import ArchitectureError, CheckpointError
from sglp.exporting import onnx_format, torch_format
from sglp.exporting.agreement import check_agreement
from sglp.exporting.example_input import check_takes, example_input
from sglp.exporting.gguf_format import export_gguf
from sglp.exporting.outputs import named_outputs
from sglp.exporting.program import trace_program
from sglp.files import new_file
from sglp.hugging_face.networks import is_pretrained
from sglp.running import call, eval_mode

GGUF = "gguf"


class Format(NamedTuple):
    """A format that a traced network is written in.

    Attributes:
        suffix: the suffix of its files.
        packages: the required packages, which the extra of the same name as the format installs.
        check: raises an error for a network that the format can't hold.
        write: writes a traced network to a path, with names of its outputs.
        read: loads a file and returns the function from inputs to outputs that it computes.
        tolerance: the largest allowed difference of an output, relative to the network's largest absolute value in it.
    """

    suffix: str
    packages: tuple[str, ...]
    check: Callable[[nn.Module], None]
    write: Callable[[ExportedProgram, Path, Sequence[str]], None]
    read: Callable[[Path], Callable[[Any], list[Tensor]]]
    tolerance: float


FORMATS = {
    "onnx": Format(
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        onnx_format.check,
        onnx_format.write,
        onnx_format.read,
        onnx_format.TOLERANCE,
    ),
    "torch-export": Format(
        ".pt2", (), torch_format.check, torch_format.write, torch_format.read, torch_format.TOLERANCE
    ),
}
SUFFIXES = {GGUF: ".gguf"} | {name: entry.suffix for name, entry in FORMATS.items()}


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    to: str,
    example: Any = None,
    trust: bool | Collection[str] = False,
) -> None:
    """Export a network, pruned or not, as a file that other programs run, for batches of any size.

    All tensors that the network returns are in the file, except caches. A tensor alone has the name "logits"; several
    have the keys of the network's dict or output object, or are "output_0", "output_1", ... of a tuple.

    Before the file appears, it is loaded and run on batches of two sizes. Its outputs must agree with the network's:
    within 1e-4 of the largest value in onnxruntime, within 1e-5 in torch. A GGUF file is not run, because no GGUF
    runtime is installed; instead, the name, shape and type of every tensor are checked. The length of token ids may
    also vary, up to the number of positions that the network has.

    GGUF holds Llama, Mistral, Qwen2 and Qwen3 models with a byte-level BPE tokenizer, with the weights in the same
    precision (norms and biases become float32).

    Args:
        model: the network, or its folder written by `save`. It is exported in eval mode, on the CPU.
        path: the file to write; it appears complete or not at all, and an existing one is replaced.
        to: "onnx" (float32, up to 2 GiB), "torch-export" (.pt2, for `torch.export.load`), or "gguf" (for llama.cpp,
            from the folder of a language model and its tokenizer).
        example: example inputs, of which only the shapes matter: a tensor [samples, ...], a dict of keyword arguments,
            a tuple of arguments, or the shape of one sample. Not needed for Hugging Face models that take images or
            token ids.
        trust: as for `load`, if the model is a folder.

    Raises:
        CheckpointError: the format does not exist, can't hold this network, or would not compute the same.
        ArchitectureError: it is not known which inputs the network takes, or it can't take the example.
    """
    _check(to)
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder: export writes one file")
    if to == GGUF:
        if isinstance(model, nn.Module):
            raise CheckpointError(
                "GGUF is written from a folder with a tokenizer: sglp.save the network and pass the folder"
            )
        return export_gguf(model, path)
    spec = FORMATS[to]
    network = copy.deepcopy(model).cpu() if isinstance(model, nn.Module) else load(model, trust=trust)
    network.eval()
    spec.check(network)
    example = _example(network, example)
    with eval_mode(network), torch.no_grad():
        outputs = named_outputs(call(network, example))
    with tqdm(total=3, desc=f"export to {to}", unit="step", disable=None) as bar, new_file(path) as new:
        program = trace_program(network, example)
        bar.update()
        spec.write(program, new, list(outputs))
        bar.update()
        check_agreement(network, spec.read(new), example, spec.tolerance, to)
        bar.update()


def file_beside(folder: str | Path, to: str) -> Path:
    """Return the path beside a folder with the suffix of a format; errors as in `export`."""
    _check(to)
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}{SUFFIXES[to]}")


def _check(to: str) -> None:
    if to not in SUFFIXES:
        raise CheckpointError(f"a network can't be exported to {to!r}: the formats are {', '.join(SUFFIXES)}")
    missing = [name for name in FORMATS[to].packages if find_spec(name) is None] if to in FORMATS else []
    if missing:
        raise CheckpointError(f"export to {to} needs the package {missing[0]}: pip install 'sglp[{to}]'")


def _example(network: nn.Module, example: Any) -> Any:
    """Return an example input: the given one, by argument name for a Hugging Face model, or one of the given shape."""
    if example is None or (isinstance(example, Sequence) and all(isinstance(size, int) for size in example)):
        return example_input(network, example)
    example = to_device(as_arguments(network, example), torch.device("cpu"))  # like the network
    if is_pretrained(network) and isinstance(example, Tensor):
        example = {network.main_input_name: example}
    if isinstance(example, list):
        raise ArchitectureError(
            f"this {type(network).__name__} takes a list with one item per sample, whose length torch.export would "
            "fix: export a module that takes a tensor [samples, ...]"
        )
    check_takes(network, example)
    return example
