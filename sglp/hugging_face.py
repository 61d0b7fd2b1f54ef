"""When layers leave a network of transformers, its config and the numbers of the other layers follow.

transformers itself is not imported here: a network is known by its class, and a config by what stands in it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn

from sglp.errors import PlanError

# What in a config says that one layer needs another: the attribute, what must stand in it, and the reason to give.
_TIES = (
    ("num_kv_shared_layers", None, "its last {} layers read the keys and values of earlier ones"),
    ("kv_source_layers", None, "some of its layers read the keys and values of others"),
    ("indexer_types", "shared", "some of its layers attend to what an earlier one selected"),
    ("hidden_size_per_layer_input", None, "each of its layers has a part of one embedding"),
    ("num_hidden_groups", None, "its layers are a few modules that run several times"),
    ("layers_block_type", "hybrid", "some of its layers share one block"),
)
# Lists of layer numbers, and counts of layers at the beginning. Other lists as long as the depth have an entry a layer.
_NUMBERS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "fullatt_block_indexes", "global_attn_indexes"),
    *("local_layer_ids", "mlp_only_layers", "moe_layers", "rope_scaling_layers", "window_block_indices"),
)
_LEADING = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
_NO_LAYERS = re.compile(r"architectures|.*token.*")
# How modules name their number, and how those around the layers name the depth.
_NUMBER = re.compile(r"(layer|block)_(idx|id|index|num|number)")
_DEPTH = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "first_kv_shared_layer_idx")


def is_pretrained(network: nn.Module) -> bool:
    """Whether a network is a `PreTrainedModel` of transformers."""
    home = ("transformers.modeling_utils", "PreTrainedModel")
    return any((kind.__module__, kind.__name__) == home for kind in type(network).__mro__)


def hub_name(network: nn.Module) -> str:
    """The name on the hub that a network was loaded by, or "" where it was loaded from a folder or not at all."""
    name = getattr(network.config, "_name_or_path", None) or ""
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists() else ""


def ties_between_layers(network: nn.Module) -> str:
    """Why a network's layers can't go one by one, as a sentence, or ""."""
    for config in configs_of(network.config):
        for name, mark, reason in _TIES:
            value = getattr(config, name, None)
            if value and (mark is None or mark in value):
                return f"{type(network).__name__} can't lose layers: {reason.format(value)} ({name})"
    return ""


def configs_of(config) -> Iterator:
    """A config and those inside of it: of text, of images."""
    yield config
    for part in vars(config).values():
        if hasattr(part, "attribute_map"):
            yield from configs_of(part)


def stacked_layers(network: nn.Module) -> set[str]:
    """The paths of the modules in lists as long as the config says that the network is deep."""
    return {
        f"{path}.{number}"
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == _depth(_config_of(network, path))
        for number in range(len(module))
    }


def stack_of(network: nn.Module, paths: Sequence[str]) -> str:
    """The path of the list of layers that all these layers are in.

    Raises:
        PlanError: they are not all in one list that the config describes, or the layers need each other.
    """
    ties = ties_between_layers(network)
    if ties:
        raise PlanError(ties)
    stack = paths[0].rpartition(".")[0]
    layers, config = network.get_submodule(stack), _config_of(network, stack)
    one = all(path.rpartition(".")[0] == stack for path in paths) and isinstance(layers, nn.ModuleList)
    known = any(part is config for part in configs_of(network.config)) and not config.is_encoder_decoder
    if not (one and known and len(layers) == _depth(config)):
        raise PlanError(
            f"{type(network).__name__} can't lose {' and '.join(paths)}: what can go are layers of one list that is as "
            "long as its config's num_hidden_layers, in a network that is no encoder with a decoder"
        )
    if len(paths) == len(layers):
        raise PlanError(f"{type(network).__name__} can't lose all its {len(layers)} layers: keep one at least")
    return stack


def leave_out(network: nn.Module, stack: str, paths: Iterable[str]) -> None:
    """Let the config and the numbers of the other layers follow, in place, before layers are taken out of a stack."""
    layers, config = network.get_submodule(stack), _config_of(network, stack)
    depth, gone = len(layers), {int(path.rpartition(".")[2]) for path in paths}
    kept = [i for i in range(depth) if i not in gone]
    kinds = {*(getattr(config, "layer_types", None) or ())}
    _shorten(config, depth, kept)
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            for name, value in vars(module).items():
                # Some count from 1.
                if _NUMBER.fullmatch(name) and value in (old, old + 1):
                    setattr(module, name, value - old + new)
    for path, module in network.named_modules():
        if not path.startswith(f"{stack}.") and _config_of(network, path) is config:
            _follow(module, config, depth, kinds)
    places = getattr(network, "hf_device_map", None)
    if places:
        network.hf_device_map = _moved(places, stack, kept)


def _config_of(network: nn.Module, path: str):
    """The config of a module, or of the nearest one around it that has one."""
    while path and getattr(network.get_submodule(path), "config", None) is None:
        path = path.rpartition(".")[0]
    return network.get_submodule(path).config


def _depth(config) -> int | None:
    return getattr(config, "num_hidden_layers", None)


def _follow(module: nn.Module, config, depth: int, kinds: set[str]) -> None:
    """Let a module around the layers know how many there are, and of which of these kinds."""
    for name in _DEPTH:
        if vars(module).get(name) == depth:
            setattr(module, name, config.num_hidden_layers)
    gone = kinds.difference(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in gone and hasattr(module, "has_sliding_layers"):
        module.has_sliding_layers = False
    if gone and isinstance(vars(module).get("layer_types"), list):  # rotary embeddings have one part a kind
        module.layer_types = [kind for kind in module.layer_types if kind not in gone]


def _shorten(config, depth: int, kept: list[int]) -> None:
    """Keep only these layers' entries in a config."""
    if getattr(config, "attention_types", None):  # GPT-Neo's, from which it makes attention_layers anew
        config.attention_types = [[[config.attention_layers[i]], 1] for i in kept]
    different = {int(number): entries for number, entries in config.to_dict().get("per_layer_config", {}).items()}
    for name, value in list(vars(config).items()):
        if name in _LEADING and value is not None:
            setattr(config, name, sum(i < value for i in kept))
        elif isinstance(value, list | tuple):
            entries = value
            if name in _NUMBERS:
                entries = [kept.index(i) for i in value if i in kept]
            elif len(value) == depth and not _NO_LAYERS.fullmatch(name):
                entries = [value[i] for i in kept]
            if isinstance(value, list):
                value[:] = entries  # in place: modules may hold the same list
            else:
                setattr(config, name, tuple(entries))
    config.num_hidden_layers = len(kept)
    if different:
        config.per_layer_config = {new: different[old] for new, old in enumerate(kept) if old in different}


def _moved(places: dict, stack: str, kept: list[int]) -> dict:
    """Where accelerate has put the modules, by their new paths."""
    moved = {}
    for path, place in places.items():
        number, _, rest = path.removeprefix(f"{stack}.").partition(".")
        if not path.startswith(f"{stack}."):
            moved[path] = place
        elif int(number) in kept:
            moved[".".join(filter(None, (stack, str(kept.index(int(number))), rest)))] = place
    return moved
