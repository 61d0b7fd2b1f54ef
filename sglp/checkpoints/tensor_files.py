"""Read and write safetensors files tensor by tensor, with one tensor in memory at a time.

Files are not mapped into memory either: systems that limit mapped memory refuse to map large files.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from sglp.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = 5_000_000_000  # bytes, as is usual on the hub
# Data types by the format's names; to take them from an empty slice, safetensors would read the whole tensor.
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        name: its name in the file.
        file: the open file.
        kind: its data type, by the name that safetensors uses.
        meta: a tensor of the same shape and data type on the meta device.
    """

    name: str
    file: safe_open
    kind: str
    meta: Tensor

    def read(self) -> Tensor:
        """Read the values of the tensor."""
        return self.file.get_tensor(self.name)

    def unread(self) -> Any:
        """Return a slice of safetensors, whose values are read when it is indexed."""
        return self.file.get_slice(self.name)


@contextmanager
def stored_tensors(folder: Path) -> Iterator[dict[str, StoredTensor]]:
    """Open the safetensors file of a folder, or all files of its index, and yield the tensors by name, unread.

    Raises:
        CheckpointError: a file is missing or broken, or contains a tensor of an unknown data type.
    """
    stored: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for path in _files(folder):
            stored |= stack.enter_context(tensors_of(path))
        yield stored


@contextmanager
def tensors_of(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """Open a safetensors file, and yield its tensors by name, unread.

    Raises:
        CheckpointError: the file is missing or broken, or contains a tensor of an unknown data type.
    """
    try:
        opened = safe_open(path, framework="pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or broken: it can't be read as safetensors") from error
    with opened as file:
        stored: dict[str, StoredTensor] = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in _TYPES:
                raise CheckpointError(
                    f"{name} in {path} has the unknown data type {kind}: it must be one of {', '.join(_TYPES)}"
                )
            meta = torch.empty(part.get_shape(), dtype=_TYPES[kind], device="meta")
            stored[name] = StoredTensor(name, file, kind, meta)
        yield stored


def write_tensors(folder: Path, tensors: Mapping[str, StoredTensor], shard: int = SHARD) -> None:
    """Copy stored tensors into one file, or into several with an index for `from_pretrained`.

    Args:
        folder: the folder to write to.
        tensors: the tensors by their new names, in the order in which they fill the files.
        shard: the largest number of bytes of tensors per file; a larger tensor gets its own file.
    """
    parts: list[list[str]] = []
    room = 0
    for name, stored in tensors.items():
        if not parts or stored.meta.nbytes > room:
            parts.append([])
            room = shard
        parts[-1].append(name)
        room -= stored.meta.nbytes
    sizes = sum(stored.meta.nbytes for stored in tensors.values())
    weight_map: dict[str, str] = {}
    with tqdm(total=sizes, desc="copying tensors", unit="B", unit_scale=True, disable=None) as bar:
        for number, names in enumerate(parts, start=1):
            file = WEIGHTS if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
            _write(folder / file, {name: tensors[name] for name in names}, bar)
            weight_map |= dict.fromkeys(names, file)
    if len(parts) > 1:
        numbers = sum(stored.meta.numel() for stored in tensors.values())
        index = {"metadata": {"total_parameters": numbers, "total_size": sizes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write(path: Path, tensors: dict[str, StoredTensor], bar: tqdm) -> None:
    """Write a file as safetensors does (github.com/huggingface/safetensors, "Format"), one tensor at a time.

    The header gives the position of each tensor after it. Wide data types come first, which aligns all tensors.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].meta.itemsize, name))
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].meta.nbytes
        header[name] = {
            "dtype": tensors[name].kind,
            "shape": list(tensors[name].meta.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(tensors[name].read().reshape(-1).view(torch.uint8).numpy().data)
            bar.update(tensors[name].meta.nbytes)


def _files(folder: Path) -> list[Path]:
    """Return the files with the weights; like `from_pretrained`, prefer a single file to an index."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / file for file in sorted(set(files))]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} is broken: it does not say which file holds which tensor") from error
