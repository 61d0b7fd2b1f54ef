"""Files of safetensors, read and written tensor by tensor: in memory is one tensor at a time, never a file.

Files are not mapped into memory either: systems that count what is mapped refuse files larger than themselves.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from sglp.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = 5_000_000_000  # bytes, as is usual on the hub
# What the format calls the types; asking for even an empty part of a tensor would read all of it.
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        name: in the file.
        file: the open file.
        kind: its data type, as safetensors calls it.
        meta: its shape and data type, without memory.
    """

    name: str
    file: safe_open
    kind: str
    meta: Tensor

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.file.get_tensor(self.name)


@contextmanager
def stored_tensors(folder: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors by name in a folder with one file of safetensors, or with several and an index; none is read yet.

    Raises:
        CheckpointError: a file is missing or broken, or has tensors of an unknown type.
    """
    stored: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for path in _files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} is missing or broken: it can't be read as safetensors") from error
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in _TYPES:
                    raise CheckpointError(f"{name} in {path} is {kind}, but what is known is {', '.join(_TYPES)}")
                meta = torch.empty(part.get_shape(), dtype=_TYPES[kind], device="meta")
                stored[name] = StoredTensor(name, file, kind, meta)
        yield stored


def write_tensors(folder: Path, tensors: Mapping[str, StoredTensor], shard: int = SHARD) -> None:
    """Copy stored tensors, under the names given, into one file, or into several with an index for `from_pretrained`.

    Args:
        folder: where to.
        tensors: by their new names, in the order in which they fill the files.
        shard: the most bytes of tensors in a file; a larger tensor has a file of its own.
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
    weight_map = {}
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
    """A file as safetensors writes it (github.com/huggingface/safetensors, "Format"), of which only one tensor is held.

    The header says where each tensor lies behind it; wide types come first, so that all are aligned.
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
            file.write(tensors[name].read().reshape(-1).view(torch.uint8).numpy())
            bar.update(tensors[name].meta.nbytes)


def _files(folder: Path) -> list[Path]:
    """The files with the weights; `from_pretrained` too takes a single file before an index."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / file for file in sorted(set(files))]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} is broken: it does not say which file holds which tensor") from error
