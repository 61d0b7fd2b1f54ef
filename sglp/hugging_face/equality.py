"""Check that two Hugging Face models are identical, also in attributes that a short input would not show."""

import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from sglp.batches import to_device
from sglp.hugging_face.computed_lists import computed_lists
from sglp.hugging_face.networks import config_of, configs_of, is_encoder_with_decoder, reads_images
from sglp.running import device_of, eval_mode

# Attributes that may differ after reloading.
_MAY_DIFFER = ("training", "gradient_checkpointing", "name_or_path")
# Config entries that transformers fills in when it saves or loads (data types are compared in the tensors).
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
_HINT = ": .to(dtype) changes buffers that are not saved, so load the model in this data type instead of converting it"
_TOKENS = 32
_PIXELS = 64  # height and width of the image if the config has no image size


def first_difference(network: nn.Module, reloaded: nn.Module) -> str:
    """Return the first difference between a saved model and the loaded one as half a sentence, or "" if there is none.

    This compares the configs, the class and the plain attributes of every module, all tensors, and the outputs on a few
    tokens or an image.
    """
    if difference := _first(_structure(network, reloaded)):
        return difference
    # Some modules store tensors that depend on the length of the last input, so both models first run on the same one.
    inputs = _inputs(network)
    outputs = _outputs(network, inputs)
    repeated = _outputs(network, inputs)
    theirs = _outputs(reloaded, inputs)
    if difference := _first(_attributes(network, reloaded)):
        return difference
    for name, ours, other in _tensors(network, reloaded):
        if ours.dtype != other.dtype or ours.shape != other.shape:
            hint = "" if name in network.state_dict() else _HINT
            return f"{name} is {_kind(ours)}, but comes back as {_kind(other)}{hint}"
        if not equal_bits(ours, other):
            return f"{name} comes back with other values"
    # On a GPU, where the order of summation varies, the outputs of a model may differ from run to run.
    if not all(map(equal_bits, outputs, repeated)) or all(map(equal_bits, outputs, theirs)):
        return ""
    # CPU kernels sum in an order that depends on where tensors lie in memory: compare again with the same tensors.
    _share_memory(network, reloaded)
    return "" if all(map(equal_bits, outputs, _outputs(reloaded, inputs))) else "it gives other outputs"


def difference_of_skeletons(network: nn.Module, reloaded: nn.Module) -> str:
    """Return the first difference between models without memory: in their configs, classes or plain attributes."""
    return _first(_structure(network, reloaded)) or _first(_attributes(network, reloaded))


def _first(pairs: Iterator[tuple[str, object, object]]) -> str:
    for name, ours, other in pairs:
        if ours != other:
            return f"{name} is {ours!r}, but comes back as {other!r}"
    return ""


def _structure(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, object, object]]:
    """Yield the config entries and the classes of the modules of both models."""
    our_entries = _entries(config_of(network))
    their_entries = _entries(config_of(reloaded))
    for key in sorted({*our_entries, *their_entries}):
        yield f"its config's {key}", our_entries.get(key), their_entries.get(key)
    for ours, theirs in zip(configs_of(config_of(network)), configs_of(config_of(reloaded)), strict=True):
        depth = getattr(ours, "num_hidden_layers", None) or 0
        our_lists = computed_lists(ours, depth)
        their_lists = computed_lists(theirs, depth)
        for key, value in our_lists.items():
            yield f"its config's {key}", value, their_lists.get(key)
    our_modules = dict(network.named_modules())
    their_modules = dict(reloaded.named_modules())
    for path in sorted({*our_modules, *their_modules}):
        yield path or "its class", _class_name(our_modules.get(path)), _class_name(their_modules.get(path))


def _class_name(module: nn.Module | None) -> str | None:
    return None if module is None else type(module).__name__


def _attributes(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, object, object]]:
    """Yield the plain attributes that loading sets on the modules, from both models."""
    for path, module in reloaded.named_modules():
        ours = vars(network.get_submodule(path))
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in _MAY_DIFFER and _is_plain(value):
                yield f"{path}.{name}".lstrip("."), _normalised(ours.get(name)), _normalised(value)


def _entries(config: Any) -> dict[str, object]:
    """Return the entries of a config as they are written to its file, by dotted names."""
    entries: dict[str, object] = {}
    pending = [("", json.loads(config.to_json_string(use_diff=False)))]
    while pending:
        prefix, values = pending.pop()
        for key, value in values.items():
            if isinstance(value, dict):
                pending.append((f"{prefix}{key}.", value))
            elif key not in _BOOKKEEPING:
                entries[f"{prefix}{key}"] = value
    return entries


def _normalised(value: object) -> object:
    """Convert tuples to lists, as JSON does, and sort lists of names, because some modules make them from sets."""
    if not isinstance(value, list | tuple):
        return value
    parts: list[Any] = [_normalised(part) for part in value]
    return sorted(parts) if all(isinstance(part, str) for part in parts) else parts


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _tensors(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the tensors of both models by name: all saved ones, and the others that both have."""
    ours = _named(network)
    theirs = _named(reloaded)
    saved = {*network.state_dict(), *reloaded.state_dict()}
    nothing = torch.empty(0)
    for name in sorted(saved | (set(ours) & set(theirs))):
        pair = ours.get(name, nothing), theirs.get(name, nothing)
        if not any(tensor.is_meta for tensor in pair):  # offloaded tensors are compared by the outputs alone
            yield name, *pair


def _named(network: nn.Module) -> dict[str, Tensor]:
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in tensors}


def _share_memory(network: nn.Module, reloaded: nn.Module) -> None:
    """Let the reloaded model use the tensors of the other one."""
    ours = _named(network)
    for name, tensor in (*reloaded.named_parameters(), *reloaded.named_buffers()):
        if name in ours and not tensor.is_meta:
            tensor.data = ours[name]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Check whether two tensors are equal bit for bit, on any devices."""
    a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b.to(a.device)))
    return torch.equal(a, b)


def _inputs(network: nn.Module) -> dict[str, Any]:
    """Return random token ids or a random image, or an empty dict for a model with another kind of input."""
    if reads_images(network):
        return _image(network)
    if network.main_input_name != "input_ids":
        return {}
    config = config_of(network).get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    length = min(_TOKENS, positions // 2) if positions > 0 else _TOKENS
    ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids}
    if is_encoder_with_decoder(network):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if hasattr(config, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def _image(network: nn.Module) -> dict[str, Any]:
    """Return an image of the config's size, or an empty dict if the model needs other inputs."""
    configs = list(configs_of(config_of(network)))
    size = next((c.image_size for c in configs if getattr(c, "image_size", None)), _PIXELS)
    channels = next((c.num_channels for c in configs if getattr(c, "num_channels", None)), 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": pixels.to(cast(torch.dtype, network.dtype))}
    try:
        _outputs(network, inputs)
    except Exception:  # it needs videos, patches or something else: everything but the outputs is still compared
        return {}
    return inputs


def _outputs(network: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Return the output tensors of a model, or an empty list for an empty dict of inputs."""
    if not inputs:
        return []
    with eval_mode(network), torch.no_grad():
        output = network(**to_device(inputs, device_of(network)), return_dict=True)
    return [value for value in output.values() if isinstance(value, Tensor)]
