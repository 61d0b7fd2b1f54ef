"""Saves and loads networks, pruned or not: model.safetensors, architecture.json and a model card, no pickles.

Networks of transformers have folders for plain `from_pretrained` (see `pretrained`), with architecture.json beside.
Of networks that read images and whose config can't say what is left of them, the folder is for `load` alone.
"""

import warnings
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglp.architecture import architecture_of, build, is_known, remember
from sglp.checkpoints.model_card import CARD, card_of, model_card
from sglp.checkpoints.tensor_files import WEIGHTS
from sglp.checkpoints.weights import fill, read_tensors
from sglp.cost import count_parameters
from sglp.errors import ArchitectureError, CheckpointError, NotPlainWarning, PlanError
from sglp.files import new_folder
from sglp.hugging_face.equality import first_difference
from sglp.hugging_face.networks import is_pretrained, reads_images
from sglp.hugging_face.pretrained import CONFIG, LIBRARY, architecture_in, from_config, load_pretrained, save_pretrained
from sglp.plan import Plan
from sglp.record import ARCHITECTURE, Architecture, from_json, to_json
from sglp.running import device_of
from sglp.surgery.prune import drop_modules, prune


def save(model: nn.Module, folder, tokenizer=None) -> None:
    """Save a network of transformers, or one that `sglp.build` made, or what `prune` made of them.

    The folder gets the weights, the factory with its arguments, the names of kept and removed layers as in the dense
    network, the versions of the modules (which `load_state_dict` asks for) and a model card. It appears whole or not at
    all. Of a network of transformers it is one for plain `from_pretrained`; before it appears it is loaded and compared
    with the network, to the bit. A pruned network that reads images and would not be the same after plain
    `from_pretrained` (its config can't say what is left) gets a folder for `load` alone, compared likewise, and a
    `NotPlainWarning` says why.

    Args:
        model: the network, on any device.
        folder: where to; an existing folder is replaced.
        tokenizer: what is to be saved beside a network of transformers; an image processor just as well.

    Raises:
        CheckpointError: it is not known how the network was built, it has been changed since, or it would not be the
            same when loaded.
        SGLPError: `folder` is a file.
    """
    architecture = architecture_of(model)
    if is_pretrained(model):
        files = {
            ARCHITECTURE: to_json(architecture, {}, {}),
            CARD: model_card(architecture, count_parameters(model)),
        }
        try:
            return save_pretrained(model, folder, tokenizer, architecture, files)
        except CheckpointError as error:
            if not (architecture.removed and reads_images(model)):
                raise
            try:
                _save(model, folder, architecture, tokenizer, str(error))
            except CheckpointError:
                raise error from None
            warnings.warn(f"{error}; {folder} is for sglp.load alone", NotPlainWarning, stacklevel=2)
        return
    if tokenizer is not None:
        raise CheckpointError(f"a tokenizer is saved beside a network of transformers, not a {type(model).__name__}")
    if architecture is None:
        raise CheckpointError(
            f"it is not known how this {type(model).__name__} was built: build it with "
            "sglp.build('package.module:function', kwargs) so that it can be loaded again"
        )
    _check_unchanged(model, architecture)
    _save(model, folder, architecture)


def _check_unchanged(model: nn.Module, architecture: Architecture) -> None:
    """Refuse a network that its factory does not build: nobody could load it."""
    try:
        with torch.device("meta"):  # without memory for weights
            built = _bare_network(Path(), architecture, trust=True)
    except ArchitectureError:  # some factories compute with numbers, which are not there then
        built = _bare_network(Path(), architecture, trust=True)
    shapes, ours = ({name: list(t.shape) for name, t in m.state_dict().items()} for m in (built, model))
    for name in shapes | ours:
        if shapes.get(name) != ours.get(name):
            found, expected = (f"has {name} {of[name]}" if name in of else f"has no {name}" for of in (ours, shapes))
            raise CheckpointError(
                f"this {type(model).__name__} {found}, but what {architecture.factory} builds from "
                f"{architecture.kwargs} {expected}: give its arguments to sglp.build, instead of changing the network"
            )


def _save(model: nn.Module, folder, architecture: Architecture, tokenizer=None, reason: str = "") -> None:
    """Write a folder for `load`; of a network of transformers with the reason why it is no plain one, and compared."""
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
    unsaved = {name: buffer.dtype for name, buffer in model.named_buffers() if name not in state}
    floating = {name: dtype for name, dtype in unsaved.items() if dtype.is_floating_point and dtype != torch.float32}
    precisions = {name: str(dtype).removeprefix("torch.") for name, dtype in floating.items()}
    text = to_json(architecture, shared, versions, reason, precisions)
    with new_folder(folder) as new:
        save_file(tensors, new / WEIGHTS)
        (new / ARCHITECTURE).write_text(text, encoding="utf-8")
        (new / CARD).write_text(card_of(new, count_parameters(model)), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        if reason and (difference := first_difference(model, load(new).to(device_of(model)))):
            raise CheckpointError(f"{type(model).__name__} would not be the same after sglp.load: {difference}")


def load(folder, trust: bool | Collection[str] = False, *, dtype=None, device_map=None) -> nn.Module:
    """Load a network that `save` wrote; it gives the same outputs to the bit. It comes in eval mode, on the CPU.

    Args:
        folder: what `save` wrote, or `save_pretrained` of a network of transformers.
        trust: whether code outside torchvision, timm, transformers and sglp may run that the folder names or brings:
            True for all of it, or the factories ("package.module:function") that the folder may name.
        dtype: another data type for the weights than they were saved in; networks of transformers only.
        device_map: where the weights shall be, as in `from_pretrained`; networks of transformers only.

    Raises:
        CheckpointError: something is missing or broken, or the folder names or brings code that is not trusted.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        architecture, ours = architecture_in(folder)
        network = load_pretrained(folder, architecture, trust, dtype, device_map)
        if ours:
            remember(network, architecture)
        return network
    architecture, shared, versions, precisions = from_json(folder)
    if dtype is not None or device_map is not None:
        raise CheckpointError(
            f"{folder} is no folder for from_pretrained: load it without dtype and device_map and move it with to()"
        )
    network = _bare_network(folder, architecture, trust)
    remember(network, architecture)
    state = read_tensors(folder / WEIGHTS)
    state |= {name: state[first] for name, first in shared.items() if first in state}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in state:  # as it was saved, in half precision too
            tensor.data = tensor.data.to(state[name].dtype)
        elif name in precisions:
            dtype = getattr(torch, precisions[name], None)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(f"{folder / ARCHITECTURE} is broken: there is no precision {precisions[name]}")
            tensor.data = tensor.data.to(dtype)
    metadata = {path: {"version": versions.get(path, 1)} for path, _ in network.named_modules()}
    fill(network, state, metadata, folder / WEIGHTS)
    return network.eval()


def _bare_network(folder: Path, architecture: Architecture, trust: bool | Collection[str]) -> nn.Module:
    """What a saved network is without its weights."""
    factory = architecture.factory
    broken = f"{folder / ARCHITECTURE} is broken: it removes layers that {factory} does not have"
    if factory.startswith(LIBRARY):
        dense = from_config(folder, architecture)
        try:
            return prune(dense, Plan.from_architecture(architecture))
        except PlanError as error:
            raise CheckpointError(broken) from error
    trusted = trust if isinstance(trust, bool) else factory in trust
    if not trusted and not is_known(factory):
        raise CheckpointError(
            f"{folder} is built by {factory}, which is no known library's: loading it runs that code; "
            f"say trust=[{factory!r}] if you trust it"
        )
    # The seed only keeps the random weights, which are overwritten at once, from moving the caller's random state.
    network = build(factory, architecture.kwargs, seed=0)
    try:
        drop_modules(network, Plan.from_architecture(architecture).removed_modules)
    except AttributeError as error:
        raise CheckpointError(broken) from error
    return network
