"""Read weight files safely: safetensors, or tensors from `torch.save`; no pickled code runs."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sglp.errors import CheckpointError

# Keys under which training scripts store the weights, and prefixes that wrappers add to the names.
_SECTIONS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file into a network, in place.

    The weights may be under "state_dict", "model_state_dict", "model" or "net", and their names may begin with
    "module." or "_orig_mod.".

    Args:
        model: the network.
        path: a safetensors file, or a file of tensors from `torch.save`.

    Raises:
        CheckpointError: the file does not exist, is broken, holds more than tensors, or does not fit the network.
    """
    state = read_tensors(Path(path))
    metadata = getattr(state, "_metadata", None)
    for section in _SECTIONS:
        if isinstance(state.get(section), Mapping):
            state = state[section]
            metadata = getattr(state, "_metadata", None)
    state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not set(state) <= set(model.state_dict()):
        state = {_bare(name): tensor for name, tensor in state.items()}
        metadata = {_bare(f"{name}.")[:-1]: version for name, version in metadata.items()} if metadata else None
    fill(model, state, metadata, Path(path))


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def read_tensors(path: Path) -> Mapping:
    """Read the contents of a weight file.

    Raises:
        CheckpointError: the file does not exist, is broken, or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:
        raise CheckpointError(f"{path} is broken, or holds more than weights, which can't be read safely") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, but a weight file holds named tensors")
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor], metadata: dict | None, path: Path) -> None:
    """Load a state dict strictly, and report in one sentence if it does not fit.

    Args:
        network: the network to load into, in place.
        state: the tensors by name.
        metadata: the versions of the modules, by path, as `state_dict` stores them.
        path: the file to name in errors.

    Raises:
        CheckpointError: the weights do not fit the network.
    """
    ordered: Any = OrderedDict(state)  # torch expects the versions in an attribute of the dict
    ordered._metadata = metadata
    try:
        network.load_state_dict(ordered)
    except RuntimeError as error:
        faults = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
        fault = faults[0] if faults else str(error)
        fault = fault if len(fault) < 200 else f"{fault[:200]}..."
        raise CheckpointError(f"{path} does not hold this network's weights: {fault}") from error
