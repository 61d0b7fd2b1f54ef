"""Files of weights, read safely: safetensors, or what `torch.save` wrote of tensors; nothing pickled is run."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sglp.errors import CheckpointError

# Where checkpoints of training scripts keep the weights, and what wrappers put before the names.
_SECTIONS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path) -> None:
    """Load a file of weights into a network, in place: safetensors, or what `torch.save` wrote of tensors.

    Weights under "state_dict", "model_state_dict", "model" or "net", and names that begin with "module." or
    "_orig_mod.", are understood.

    Raises:
        CheckpointError: there is no such file, it is broken or holds more than tensors, or it is another network's.
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
    """What a file of weights holds.

    Raises:
        CheckpointError: there is no such file, it is broken or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file of weights at {path}")
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
        raise CheckpointError(f"{path} is broken, or holds more than weights: it can't be read safely") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, but a file of weights holds named tensors")
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor], metadata: dict | None, path: Path) -> None:
    """`load_state_dict`, strictly, with one sentence where it does not fit.

    Raises:
        CheckpointError: what was read from the path is another network's.
    """
    ordered = OrderedDict(state)
    ordered._metadata = metadata
    try:
        network.load_state_dict(ordered)
    except RuntimeError as error:
        faults = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
        fault = faults[0] if faults else str(error)
        fault = fault if len(fault) < 200 else f"{fault[:200]}..."
        raise CheckpointError(f"{path} does not hold this network's weights: {fault}") from error
