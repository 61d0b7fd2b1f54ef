"""Saves and loads networks, pruned or not: model.safetensors and architecture.json, no pickles.

Networks of transformers have folders for plain `from_pretrained` (see `pretrained`), with architecture.json beside.
"""

import json
import pickle
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sglp.architecture import Architecture, architecture_of, build, is_known, remember
from sglp.errors import CheckpointError
from sglp.files import new_folder
from sglp.hugging_face import is_pretrained
from sglp.pretrained import CONFIG, load_pretrained, save_pretrained
from sglp.surgery import drop_modules

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"
# Where checkpoints of training scripts keep the weights, and what wrappers put before the names.
_SECTIONS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


def save(model: nn.Module, folder, tokenizer=None) -> None:
    """Save a network of transformers, or one that `sglp.build` made, or what `prune` made of them.

    The folder gets the weights, the factory with its arguments, the names of kept and removed layers as in the dense
    network, and the versions of the modules (which `load_state_dict` asks for). It appears whole or not at all.
    Of a network of transformers it is one for plain `from_pretrained`, with a model card; before it appears it is
    loaded and compared with the network, to the bit.

    Args:
        model: the network, on any device.
        folder: where to; an existing folder is replaced.
        tokenizer: what is to be saved beside a network of transformers.

    Raises:
        CheckpointError: it is not known how the network was built, or it would not be the same when loaded.
    """
    architecture = architecture_of(model)
    if is_pretrained(model):
        return save_pretrained(model, folder, tokenizer, architecture, {ARCHITECTURE: _text(architecture, {}, {})})
    if tokenizer is not None:
        raise CheckpointError(f"a tokenizer is saved beside a network of transformers, not a {type(model).__name__}")
    if architecture is None:
        raise CheckpointError(
            f"it is not known how this {type(model).__name__} was built: build it with "
            "sglp.build('package.module:function', kwargs) so that it can be loaded again"
        )
    state = model.state_dict()
    names: dict[tuple, str] = {}
    shared: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first = names.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if first == name or not tensor.numel():
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            shared[name] = first
    versions = {path: meta["version"] for path, meta in state._metadata.items() if meta.get("version", 1) != 1}
    text = _text(architecture, shared, versions)
    with new_folder(folder) as new:
        save_file(tensors, new / WEIGHTS)
        (new / ARCHITECTURE).write_text(text, encoding="utf-8")


def _text(architecture: Architecture, shared: dict[str, str], versions: dict[str, int]) -> str:
    """What stands in architecture.json."""
    content = {
        "factory": architecture.factory,
        "kwargs": architecture.kwargs,
        "kept": architecture.kept,
        "removed": architecture.removed,
        "shared": shared,
        "versions": versions,
    }
    if architecture.base_model:
        content["base_model"] = architecture.base_model
    try:
        return json.dumps(content, indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"the arguments {architecture.kwargs} of {architecture.factory} can't be saved: they must be numbers, "
            "strings, lists and dicts"
        ) from error


def load(folder, trust: bool | Collection[str] = False, *, dtype=None, device_map=None) -> nn.Module:
    """Load a network that `save` wrote; it gives the same outputs to the bit. It comes in eval mode, on the CPU.

    Args:
        folder: what `save` wrote.
        trust: whether code outside torchvision, timm, transformers and sglp may run that the folder names or brings:
            True for all of it, or the factories ("package.module:function") that the folder may name.
        dtype: another data type for the weights than they were saved in; networks of transformers only.
        device_map: where the weights shall be, as in `from_pretrained`; networks of transformers only.

    Raises:
        CheckpointError: something is missing or broken, or the folder names or brings code that is not trusted.
    """
    folder = Path(folder)
    architecture, shared, versions = _recorded(folder)
    factory = architecture.factory
    if (folder / CONFIG).is_file():
        network = load_pretrained(folder, architecture, trust, dtype, device_map)
        remember(network, architecture)
        return network
    if dtype is not None or device_map is not None:
        raise CheckpointError(
            f"{folder} holds no network of transformers: load it without dtype and device_map and move it with to()"
        )
    trusted = trust if isinstance(trust, bool) else factory in trust
    if not trusted and not is_known(factory):
        raise CheckpointError(
            f"{folder} is built by {factory}, which is no known library's: loading it runs that code; "
            f"say trust=[{factory!r}] if you trust it"
        )
    # The seed only keeps the random weights, which are overwritten at once, from moving the caller's random state.
    network = build(factory, architecture.kwargs, seed=0)
    try:
        drop_modules(network, architecture.removed_modules)
    except AttributeError as error:
        raise CheckpointError(
            f"{folder / ARCHITECTURE} is broken: it removes layers that {factory} does not have"
        ) from error
    remember(network, architecture)
    state = _read(folder / WEIGHTS)
    state |= {name: state[first] for name, first in shared.items() if first in state}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in state:  # as it was saved, in half precision too
            tensor.data = tensor.data.to(state[name].dtype)
    metadata = {path: {"version": versions.get(path, 1)} for path, _ in network.named_modules()}
    _fill(network, state, metadata, folder / WEIGHTS)
    return network.eval()


def saved_architecture(folder) -> Architecture:
    """How a saved network was built and what was removed from it, without running any of its code.

    Raises:
        CheckpointError: the folder holds no saved network.
    """
    return _recorded(Path(folder))[0]


def _recorded(folder: Path) -> tuple[Architecture, dict[str, str], dict[str, int]]:
    """What `_text` has written: the architecture, the names of shared tensors, the versions of the modules."""
    try:
        content = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        factory, kwargs, removed = content["factory"], content["kwargs"], tuple(content["removed"])
        kept, shared, versions = tuple(content["kept"]), content["shared"], content["versions"]
        architecture = Architecture(factory, kwargs, kept, removed, content.get("base_model", ""))
        if not (isinstance(factory, str) and all(isinstance(part, dict) for part in (kwargs, shared, versions))):
            raise TypeError("wrong kinds of values")
        if not all(isinstance(name, str) for name in (*kept, *removed, *shared.values())):
            raise TypeError("wrong kinds of names")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is no saved network: it has no {ARCHITECTURE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ARCHITECTURE} is broken: it does not say how to build the network") from error
    return architecture, shared, versions


def load_weights(model: nn.Module, path) -> None:
    """Load a file of weights into a network, in place: safetensors, or what `torch.save` wrote of tensors.

    Weights under "state_dict", "model_state_dict", "model" or "net", and names that begin with "module." or
    "_orig_mod.", are understood.

    Raises:
        CheckpointError: there is no such file, it is broken or holds more than tensors, or it is another network's.
    """
    state = _read(Path(path))
    metadata = getattr(state, "_metadata", None)
    for section in _SECTIONS:
        if isinstance(state.get(section), Mapping):
            state = state[section]
            metadata = getattr(state, "_metadata", None)
    state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not set(state) <= set(model.state_dict()):
        state = {_bare(name): tensor for name, tensor in state.items()}
        metadata = {_bare(f"{name}.")[:-1]: version for name, version in metadata.items()} if metadata else None
    _fill(model, state, metadata, Path(path))


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _read(path: Path) -> Mapping:
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


def _fill(network: nn.Module, state: Mapping[str, Tensor], metadata: dict | None, path: Path) -> None:
    """`load_state_dict`, strictly, with one sentence where it does not fit."""
    ordered = OrderedDict(state)
    ordered._metadata = metadata
    try:
        network.load_state_dict(ordered)
    except RuntimeError as error:
        faults = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
        fault = faults[0] if faults else str(error)
        fault = fault if len(fault) < 200 else f"{fault[:200]}..."
        raise CheckpointError(f"{path} does not hold this network's weights: {fault}") from error
