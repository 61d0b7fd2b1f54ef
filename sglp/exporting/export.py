"""One way to export a network: whatever the format, it is checked against the network before the file appears."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from sglp.batches import to_device
from sglp.checkpoints.checkpoint import load
from sglp.errors import CheckpointError
from sglp.exporting import onnx_format, torch_format
from sglp.exporting.agreement import check_agreement
from sglp.exporting.example_input import check_takes, example_input
from sglp.exporting.gguf_format import export_gguf
from sglp.exporting.program import trace_program
from sglp.files import new_file
from sglp.hugging_face.networks import is_pretrained

GGUF = "gguf"


class Format(NamedTuple):
    """A format that a traced network is written in.

    Attributes:
        suffix: of its files.
        packages: what must be installed, with the extra of the same name.
        check: an error for a network that it can't hold.
        write: writes a traced network; called with the program, its inputs' names, and the path.
        read: what a file computes, as a function from inputs to logits.
        tolerance: how far its logits may be from the network's, as a share of the largest logit.
    """

    suffix: str
    packages: tuple[str, ...]
    check: Callable[[nn.Module], None]
    write: Callable
    read: Callable
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
    example=None,
    trust: bool | Collection[str] = False,
) -> None:
    """Write a network, pruned or not, as a file that other programs run; it takes batches of any size.

    Before the file appears it is read again and computes logits of batches of two sizes, which must be the network's:
    within 1e-4 of the largest one in onnxruntime, within 1e-5 in torch; of GGUF, which
    nothing here computes, the tensors are. Token ids may also be of any length.

    Args:
        model: the network, or the folder that `save` wrote of it. It is exported in eval mode, on the CPU.
        path: the file; it appears whole or not at all, and an existing one is replaced.
        to: "onnx" (float32, up to 2 GiB), "torch-export" (what `torch.export.load` reads, as .pt2), or "gguf" (from the
            folder of a language model; see `export_gguf`).
        example: inputs, of which only the shapes count: a tensor [samples, ...], a dict of keyword arguments, or the
            shape of one sample. Not needed for networks of transformers that take images or token ids.
        trust: as for `load`, where the model is a folder.

    Raises:
        CheckpointError: there is no such format, it can't hold this network, or it would not compute the same.
        ArchitectureError: it is not known which inputs the network takes, or it does not take these.
    """
    _check(to)
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder: export writes one file")
    if to == GGUF:
        if isinstance(model, nn.Module):
            raise CheckpointError("GGUF is written from a folder with a tokenizer: sglp.save the network and give that")
        return export_gguf(model, path)
    form = FORMATS[to]
    network = copy.deepcopy(model).cpu() if isinstance(model, nn.Module) else load(model, trust=trust)
    network.eval()
    form.check(network)
    example = _example(network, example)
    with tqdm(total=3, desc=f"export to {to}", unit="step", disable=None) as bar, new_file(path) as new:
        program = trace_program(network, example)
        bar.update()
        form.write(program, new)
        bar.update()
        check_agreement(network, form.read(new), example, form.tolerance, to)
        bar.update()


def file_beside(folder: str | Path, to: str) -> Path:
    """The file beside a folder, with the ending of a format; errors as in `export`."""
    _check(to)
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}{SUFFIXES[to]}")


def _check(to: str) -> None:
    if to not in SUFFIXES:
        raise CheckpointError(f"a network can't be exported to {to!r}: it can be to {', '.join(SUFFIXES)}")
    missing = [name for name in FORMATS[to].packages if find_spec(name) is None] if to in FORMATS else []
    if missing:
        raise CheckpointError(f"to export to {to} {missing[0]} is needed: pip install 'sglp[{to}]'")


def _example(network: nn.Module, example):
    """One input of a network: what was given, with the name of its argument where that must be told, or one made."""
    if example is None or (isinstance(example, Sequence) and not isinstance(example, str)):
        return example_input(network, example)
    example = to_device(example, torch.device("cpu"))  # where the network is by now
    if is_pretrained(network) and not isinstance(example, Mapping):
        example = {network.main_input_name: example}
    check_takes(network, example)
    return example
