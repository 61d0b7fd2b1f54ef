"""Whether two networks of transformers are one and the same: to the bit, and in what a short input would not show."""

import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sglp.batches import to_device
from sglp.hugging_face.networks import configs_of, reads_images
from sglp.running import device_of, eval_mode

# What a network is in for a while, or by whom it was loaded, is not what it is.
_PASSING = ("training", "gradient_checkpointing", "name_or_path")
# Entries of configs that transformers fills in when it saves or loads (data types are seen in the tensors).
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
_HINT = ": .to(dtype) changes what is not saved, so load a network in its data type instead of converting it"
_TOKENS = 32
_PIXELS = 64  # a side of the image, where the config says none


def first_difference(network: nn.Module, reloaded: nn.Module) -> str:
    """What tells a network that was saved from the one that was loaded, as half a sentence; "" where they are the same.

    Compared are the configs, every module's class and plain attributes, all tensors, and the outputs on a few tokens or
    an image.
    """
    if difference := _first(_structure(network, reloaded)):
        return difference
    # Some modules keep what the length of the last input made of them: let it be the same one.
    inputs = _inputs(network)
    outputs, again, theirs = (_outputs(one, inputs) for one in (network, network, reloaded))
    if difference := _first(_attributes(network, reloaded)):
        return difference
    for name, ours, other in _tensors(network, reloaded):
        if ours.dtype != other.dtype or ours.shape != other.shape:
            hint = "" if name in network.state_dict() else _HINT
            return f"{name} is {_kind(ours)}, but comes back as {_kind(other)}{hint}"
        if not _equal(ours, other):
            return f"{name} comes back with other values"
    # Where a GPU adds up in any order, a network is not even equal to itself.
    if not all(map(_equal, outputs, again)) or all(map(_equal, outputs, theirs)):
        return ""
    # A CPU's kernels add up in an order that follows where tensors lie in memory: ask again with the very same ones.
    _share_memory(network, reloaded)
    return "" if all(map(_equal, outputs, _outputs(reloaded, inputs))) else "it gives other outputs"


def difference_of_skeletons(network: nn.Module, reloaded: nn.Module) -> str:
    """`first_difference` of networks without memory: in their configs, classes and plain attributes."""
    return _first(_structure(network, reloaded)) or _first(_attributes(network, reloaded))


def _first(pairs: Iterator[tuple[str, object, object]]) -> str:
    for name, ours, other in pairs:
        if ours != other:
            return f"{name} is {ours!r}, but comes back as {other!r}"
    return ""


def _structure(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, object, object]]:
    """What the configs say, and of which classes the modules are, here and there."""
    ours, theirs = _entries(network.config), _entries(reloaded.config)
    for key in sorted({*ours, *theirs}):
        yield f"its config's {key}", ours.get(key), theirs.get(key)
    ours, theirs = dict(network.named_modules()), dict(reloaded.named_modules())
    for path in sorted({*ours, *theirs}):
        kinds = [type(modules[path]).__name__ if path in modules else None for modules in (ours, theirs)]
        yield path or "its class", *kinds


def _attributes(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, object, object]]:
    """The plain attributes of the modules, as far as loading sets them."""
    for path, module in reloaded.named_modules():
        ours = vars(network.get_submodule(path))
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in _PASSING and _is_plain(value):
                yield f"{path}.{name}".lstrip("."), _settled(ours.get(name)), _settled(value)


def _entries(config) -> dict:
    """What stands in a config as it is written to its file, by dotted names."""
    entries, waiting = {}, [("", json.loads(config.to_json_string(use_diff=False)))]
    while waiting:
        prefix, values = waiting.pop()
        for key, value in values.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{key}.", value))
            elif key not in _BOOKKEEPING:
                entries[f"{prefix}{key}"] = value
    return entries


def _settled(value):
    """Tuples as the lists that JSON makes of them; names in any order: modules list the kinds of layers in a set's."""
    if not isinstance(value, list | tuple):
        return value
    parts = [_settled(part) for part in value]
    return sorted(parts) if all(isinstance(part, str) for part in parts) else parts


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _tensors(network: nn.Module, reloaded: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of both by name; of those that are not saved only what both have."""
    ours, theirs = _named(network), _named(reloaded)
    saved = {*network.state_dict(), *reloaded.state_dict()}
    nothing = torch.empty(0)
    for name in sorted(saved | (set(ours) & set(theirs))):
        pair = ours.get(name, nothing), theirs.get(name, nothing)
        if not any(tensor.is_meta for tensor in pair):  # offloaded: only the outputs tell
            yield name, *pair


def _named(network: nn.Module) -> dict[str, Tensor]:
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in tensors}


def _share_memory(network: nn.Module, reloaded: nn.Module) -> None:
    """Let the reloaded network have the tensors of the other one."""
    ours = _named(network)
    for name, tensor in (*reloaded.named_parameters(), *reloaded.named_buffers()):
        if name in ours and not tensor.is_meta:
            tensor.data = ours[name]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to the bit, on any devices."""
    a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b.to(a.device)))
    return torch.equal(a, b)


def _inputs(network: nn.Module) -> dict:
    """Random token ids or a random image; nothing for a network that reads something else."""
    if reads_images(network):
        return _image(network)
    if network.main_input_name != "input_ids":
        return {}
    config = network.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    length = min(_TOKENS, positions // 2) if positions > 0 else _TOKENS
    ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if hasattr(config, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def _image(network: nn.Module) -> dict:
    """An image of the size that a config says; nothing where the network wants more than that."""
    configs = list(configs_of(network.config))
    size = next((c.image_size for c in configs if getattr(c, "image_size", None)), _PIXELS)
    channels = next((c.num_channels for c in configs if getattr(c, "num_channels", None)), 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": pixels.to(network.dtype)}
    try:
        _outputs(network, inputs)
    except Exception:  # videos, patches: whatever it wants, the rest can be compared
        return {}
    return inputs


def _outputs(network: nn.Module, inputs: dict) -> list[Tensor]:
    """A network's output tensors."""
    if not inputs:
        return []
    with eval_mode(network), torch.no_grad():
        output = network(**to_device(inputs, device_of(network)), return_dict=True)
    return [value for value in output.values() if isinstance(value, Tensor)]
