"""Save and load networks, pruned or not, as model.safetensors, architecture.json and a model card, without pickles.

Hugging Face models get folders for plain `from_pretrained` (see `pretrained`), with architecture.json in addition. If
no config can describe the pruned model, only `load` reads the folder.
"""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

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
from sglp.hugging_face.networks import is_pretrained
from sglp.hugging_face.pretrained import CONFIG, LIBRARY, architecture_in, from_config, load_pretrained, save_pretrained
from sglp.hugging_face.wrapping import has_adapters, inner_models, unwrapped
from sglp.plan import Plan
from sglp.record import ARCHITECTURE, Architecture, from_json, to_json
from sglp.running import device_of
from sglp.surgery.prune import remove_layers, remove_modules


def save(model: nn.Module, folder: str | Path, tokenizer: Any = None) -> None:
    """Save a Hugging Face model, a network that `sglp.build` made, or either of them after `prune`.

    The folder contains the weights, the factory with its arguments, the names of kept and removed layers as in the
    dense network, the versions of the modules (which `load_state_dict` needs) and a model card. It appears complete or
    not at all. For a Hugging Face model, plain `from_pretrained` loads the folder, with one exception: a pruned model
    that its config can't describe loads only with `load`, and a `NotPlainWarning` gives the reason. Either way,
    equality is verified bit for bit before the folder appears. Of a network in `nn.DataParallel` or
    `DistributedDataParallel`, the network inside is saved.

    Args:
        model: the network, on any device.
        folder: the folder to write; an existing one is replaced.
        tokenizer: a tokenizer or image processor to save with a Hugging Face model.

    Raises:
        CheckpointError: it is not known how the network was built, it has been changed since, or it would not be the
            same when loaded.
        SGLPError: `folder` is a file.
    """
    model = unwrapped(model)
    if has_adapters(model):
        raise CheckpointError(
            f"this {type(model).__name__} has adapters of PEFT, which would not be saved with it: merge them first "
            "(merge_and_unload of the PeftModel returns the merged model), or remove them (delete_adapter)"
        )
    architecture = architecture_of(model)
    if is_pretrained(model):
        assert architecture is not None, "architecture_of knows every Hugging Face model"
        files = {
            ARCHITECTURE: to_json(architecture, {}, {}),
            CARD: model_card(architecture, count_parameters(model)),
        }
        try:
            return save_pretrained(model, folder, tokenizer, architecture, files)
        except CheckpointError as error:
            if not architecture.removed:
                raise
            try:
                _save(model, folder, architecture, tokenizer, str(error))
            except CheckpointError:
                raise error from None
            warnings.warn(f"{error}; only sglp.load can read {folder}", NotPlainWarning, stacklevel=2)
        return
    if tokenizer is not None:
        raise CheckpointError(f"a tokenizer can be saved with a Hugging Face model, not with a {type(model).__name__}")
    if architecture is None:
        if inner := [path for path in inner_models(model) if path]:
            raise CheckpointError(
                f"this {type(model).__name__} is not a Hugging Face model itself: save the model inside it ({inner[0]})"
            )
        raise CheckpointError(
            f"it is not known how this {type(model).__name__} was built: build it with "
            "sglp.build('package.module:function', kwargs) so that it can be loaded again"
        )
    _check_unchanged(model, architecture)
    _save(model, folder, architecture)


def _check_unchanged(model: nn.Module, architecture: Architecture) -> None:
    """Refuse a network that its factory does not build, because it could not be loaded again."""
    try:
        with torch.device("meta"):  # without memory for weights
            built = _bare_network(Path(), architecture, trust=True)
    except ArchitectureError:  # some factories compute with values, which tensors on the meta device don't have
        built = _bare_network(Path(), architecture, trust=True)
    built_shapes = _shapes(built)
    own_shapes = _shapes(model)
    for name in built_shapes | own_shapes:
        if built_shapes.get(name) != own_shapes.get(name):
            own, expected = (
                f"has {name} {shapes[name]}" if name in shapes else f"has no {name}"
                for shapes in (own_shapes, built_shapes)
            )
            raise CheckpointError(
                f"this {type(model).__name__} {own}, but the network that {architecture.factory} builds from "
                f"{architecture.kwargs} {expected}: pass the right arguments to sglp.build instead of changing the "
                "network"
            )


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def _save(
    model: nn.Module, folder: str | Path, architecture: Architecture, tokenizer: Any = None, reason: str = ""
) -> None:
    """Write a folder for `load`.

    Args:
        model: the network.
        folder: the folder to write; an existing one is replaced.
        architecture: how the network is built.
        tokenizer: a tokenizer or image processor, or None.
        reason: why plain `from_pretrained` can't load a Hugging Face model; with it, the folder is loaded and compared
            with the model before it appears. "" for other networks.

    Raises:
        CheckpointError: the loaded model is not the same.
    """
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
    metadata = cast(Any, state)._metadata  # an attribute that torch adds to the dict
    versions = {path: meta["version"] for path, meta in metadata.items() if meta.get("version", 1) != 1}
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
        if reason:
            loaded: Any = load(new).to(device_of(model))
            loaded.set_attn_implementation(cast(Any, model).config._attn_implementation)
            if difference := first_difference(model, loaded):
                raise CheckpointError(f"{type(model).__name__} would not be the same after sglp.load: {difference}")


def load(
    folder: str | Path, trust: bool | Collection[str] = False, *, dtype: Any = None, device_map: Any = None
) -> nn.Module:
    """Load a network that `save` wrote: in eval mode, on the CPU, with the same outputs bit for bit.

    Args:
        folder: a folder written by `save`, or by `save_pretrained` of a Hugging Face model.
        trust: permission to run code outside torchvision, timm, transformers and sglp that the folder names or
            contains: True for all of it, or the factories ("package.module:function") that the folder may name.
        dtype: the data type to convert the weights to, instead of the saved one; Hugging Face models only.
        device_map: the devices for the weights, as in `from_pretrained`; Hugging Face models only.

    Raises:
        CheckpointError: something is missing or broken, or the folder names or contains code that is not trusted.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        architecture, is_ours = architecture_in(folder)
        network = load_pretrained(folder, architecture, trust, dtype, device_map)
        if is_ours:
            remember(network, architecture)
        return network
    architecture, shared, versions, precisions = from_json(folder)
    if dtype is not None or device_map is not None:
        raise CheckpointError(
            f"{folder} is not a folder for from_pretrained: load it without dtype and device_map and move it with to()"
        )
    network = _bare_network(folder, architecture, trust)
    remember(network, architecture)
    state = dict(read_tensors(folder / WEIGHTS))
    state |= {name: state[first] for name, first in shared.items() if first in state}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in state:  # the saved precision, such as bfloat16
            tensor.data = tensor.data.to(state[name].dtype)
        elif name in precisions:
            dtype = getattr(torch, precisions[name], None)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(
                    f"{folder / ARCHITECTURE} is broken: the precision {precisions[name]} of {name} does not exist"
                )
            tensor.data = tensor.data.to(dtype)
    metadata = {path: {"version": versions.get(path, 1)} for path, _ in network.named_modules()}
    fill(network, state, metadata, folder / WEIGHTS)
    return network.eval()


def _bare_network(folder: Path, architecture: Architecture, trust: bool | Collection[str]) -> nn.Module:
    """Build a saved network, with its layers removed, but without its weights.

    Raises:
        CheckpointError: the factory is not trusted, or it builds a network without the removed layers.
    """
    factory = architecture.factory
    broken = f"{folder / ARCHITECTURE} is broken: it removes layers that {factory} does not have"
    if factory.startswith(LIBRARY):
        dense = from_config(folder, architecture)
        try:
            remove_layers(dense, Plan.from_architecture(architecture))
        except (AttributeError, PlanError) as error:
            raise CheckpointError(broken) from error
        return dense
    trusted = trust if isinstance(trust, bool) else factory in trust
    if not trusted and not is_known(factory):
        raise CheckpointError(
            f"{folder} is built by {factory}, which is not from a known library and runs when the network is loaded: "
            f"pass trust=[{factory!r}] if you trust it"
        )
    # The seed only leaves the caller's random state alone: the random weights are overwritten at once.
    network = build(factory, architecture.kwargs, seed=0)
    try:
        remove_modules(network, architecture.removed)
    except (AttributeError, PlanError) as error:
        raise CheckpointError(broken) from error
    return network
