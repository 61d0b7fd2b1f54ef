"""Keep a Hugging Face model's config and layer indices consistent when layers are removed.

A config counts layers in one of two ways: as `num_hidden_layers`, with all layers in one list of modules, or per stage
as `depths`, with one list per stage. transformers is not imported at run time: models are recognised by their class
name, configs by their attributes.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import nn

from sglp.errors import PlanError
from sglp.hugging_face.config import DEPTHS, shorten, shorten_stages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Config attributes that show that one layer needs another: the attribute, the entry it must contain (None: any value
# that is not empty or 0), and the reason to report.
_TIES = (
    ("num_kv_shared_layers", None, "its last {} layers read the keys and values of earlier ones"),
    ("kv_source_layers", None, "some of its layers read the keys and values of others"),
    ("indexer_types", "shared", "some of its layers attend to what an earlier one selected"),
    ("hidden_size_per_layer_input", None, "each of its layers has a part of one embedding"),
    ("num_hidden_groups", None, "its layers are a few modules that run several times"),
    ("layers_block_type", "hybrid", "some of its layers share one block"),
)
# Attributes in which layers store their index, and attributes in which the modules around them store the depth.
_INDEX_ATTRIBUTE = re.compile(r"(layer|block)_(idx|id|index|num|number)")
_DROP_PATH = "drop_path"
_DEPTH_ATTRIBUTES = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "first_kv_shared_layer_idx")


def is_pretrained(network: nn.Module) -> "TypeGuard[PreTrainedModel]":
    """Check whether a network is a Hugging Face model (a `PreTrainedModel`)."""
    home = ("transformers.modeling_utils", "PreTrainedModel")
    return any((kind.__module__, kind.__name__) == home for kind in type(network).__mro__)


def config_of(network: nn.Module, path: str = "") -> Any:
    """Return the config of a module, or of the nearest module around it that has one."""
    while path and getattr(network.get_submodule(path), "config", None) is None:
        path = path.rpartition(".")[0]
    return network.get_submodule(path).config


def hub_name(network: nn.Module) -> str:
    """Return the hub name that a model was loaded by, or "" if it does not come from the hub."""
    name = getattr(config_of(network), "_name_or_path", None) or ""
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists() else ""


def config_entries(config: Any) -> dict:
    """Return the entries of a config as JSON values, without the names of local folders."""
    copied = copy.deepcopy(config)
    for part in configs_of(copied):
        part._name_or_path = ""
    return json.loads(copied.to_json_string())


def ties_between_layers(network: nn.Module) -> str:
    """Return the reason why the layers of a Hugging Face model can't be removed one by one, as a sentence, or ""."""
    if is_encoder_with_decoder(network):
        return (
            f"{type(network).__name__} can't lose layers: it is an encoder with a decoder, and only one stack of "
            "layers can be pruned. Prune its encoder alone (get_encoder(), or a class that is an encoder only)"
        )
    for config in configs_of(config_of(network)):
        for name, mark, reason in _TIES:
            value = getattr(config, name, None)
            if value and (mark is None or mark in value):
                return f"{type(network).__name__} can't lose layers: {reason.format(value)} ({name})"
    return ""


def is_encoder_with_decoder(network: nn.Module) -> bool:
    """Check whether a Hugging Face model has an encoder and a decoder; either of them alone is an ordinary stack."""
    if not config_of(network).is_encoder_decoder:
        return False
    lists = [path.split(".") for path, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    return all(any(part in path for path in lists) for part in ("encoder", "decoder"))


def configs_of(config: Any) -> Iterator[Any]:
    """Yield a config and the configs nested in it, such as those of its text part and its image part."""
    yield config
    for part in vars(config).values():
        if hasattr(part, "attribute_map"):
            yield from configs_of(part)


def reads_images(network: nn.Module) -> bool:
    """Check whether the main input of a Hugging Face model is pixels."""
    return network.main_input_name == "pixel_values"


def module_list(network: nn.Module, path: str) -> nn.ModuleList | nn.Sequential:
    """Return the list of modules at a path of a stack (see `stack_of`)."""
    return cast(nn.ModuleList | nn.Sequential, network.get_submodule(path))


def stacked_layers(network: nn.Module) -> set[str]:
    """Return the paths of all modules in the lists that the config counts."""
    return set(layers_of(network))


def layers_of(network: nn.Module) -> list[str]:
    """Return the paths of all modules in the lists that the config counts, list by list."""
    return [
        f"{path}.{index}"
        for stack in _stacks(network)
        for path in stack
        for index in range(len(module_list(network, path)))
    ]


def stack_of(network: nn.Module, paths: Sequence[str]) -> list[str] | None:
    """Return the paths of the lists, counted by the config, that contain all these layers.

    Args:
        network: a Hugging Face model.
        paths: the paths of the layers to remove.

    Returns:
        The path of one list, or the paths of one list per stage. None for a model that reads images if its config does
        not count the layers: they can be removed, but no config describes the result.

    Raises:
        PlanError: the config of a model that reads tokens does not count the layers, or the layers need each other.
    """
    ties = ties_between_layers(network)
    if ties:
        raise PlanError(ties)
    parents = {path.rpartition(".")[0] for path in paths}
    stack = next((stack for stack in _stacks(network) if parents <= set(stack)), None)
    config = config_of(network)
    if stack and not _is_part(config_of(network, stack[0]), config):
        stack = None
    if not (stack or reads_images(network)):
        raise PlanError(
            f"{type(network).__name__} can't lose {' and '.join(paths)}: only layers of one list that is as long as "
            "its config's num_hidden_layers can be removed"
        )
    if not stack:
        return None
    depth = sum(len(module_list(network, path)) for path in stack)
    if len(paths) == depth:
        raise PlanError(f"{type(network).__name__} can't lose all its {depth} layers: keep at least one")
    return stack


def _is_part(part: Any, config: Any) -> bool:
    """Check whether a config is another one, is nested in it, or is a copy of it that counts as many layers."""
    if any(nested is part for nested in configs_of(config)):
        return True
    counts = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
    is_copy = type(part) is type(config) and not _stages(config)
    return is_copy and all(getattr(part, name, None) == getattr(config, name, None) for name in counts)


def leave_out(network: nn.Module, stack: Sequence[str], paths: Iterable[str]) -> None:
    """Update the config and the indices of the kept layers, in place, before layers are removed from a stack.

    Stochastic depth, whose rates grow with the depth, gets the rates of a new model with the new config.

    Args:
        network: a Hugging Face model.
        stack: the paths of its lists of layers, from `stack_of`.
        paths: the paths of the layers that are removed next.
    """
    removed = set(paths)
    config = config_of(network, stack[0])
    lists = {path: module_list(network, path) for path in stack}
    kept = {path: [i for i in range(len(lists[path])) if f"{path}.{i}" not in removed] for path in stack}
    if _stages(config):
        shorten_stages(config, [len(indices) for indices in kept.values()])
    else:
        (path,) = stack
        depth = len(lists[path])
        kinds = {*(getattr(config, "layer_types", None) or ())}
        counts = _counts(config, path)
        shorten(config, depth, kept[path], counts)
        if not any(part is config for part in configs_of(network.config)):  # the stack has a copy of the config
            shorten(network.config, depth, kept[path], counts)
        for other, module in network.named_modules():
            if not other.startswith(f"{path}.") and config_of(network, other) is config:
                _update_surroundings(module, config, depth, kinds)
                _narrow_contact_head(module, depth, kept[path])
    for path, indices in kept.items():
        for new, old in enumerate(indices):
            _renumber(lists[path][old], old, new)
    has_drop_path = any(name.endswith(_DROP_PATH) for name, _ in network.named_modules())
    if has_drop_path and getattr(config, "drop_path_rate", None):
        _spread_rates(network, kept)
    for path, indices in kept.items():
        if getattr(network, "hf_device_map", None):
            cast(Any, network).hf_device_map = _moved_device_map(cast(Any, network).hf_device_map, path, indices)


def _stacks(network: nn.Module) -> list[list[str]]:
    """Return the lists of modules that are as long as a config says, except lists nested in other lists."""
    groups: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            # The paths of the lists of one model's stages differ only in their last number.
            pattern = re.sub(r"\d+(?=\D*$)", "*", path) if _stages(config_of(network, path)) else path
            groups.setdefault(pattern, []).append(path)
    stacks: list[list[str]] = []
    for group in sorted(groups.values(), key=lambda paths: paths[0].count(".")):
        config = config_of(network, group[0])
        lists = [module_list(network, path) for path in group]
        lengths: list[int | None] = [*_stages(config)] or [getattr(config, _counts(config, group[0])[0], None)]
        is_list = _stages(config) or isinstance(lists[0], nn.ModuleList)
        is_nested = any(group[0].startswith(f"{path}.") for stack in stacks for path in stack)
        if is_list and not is_nested and [len(modules) for modules in lists] == lengths:
            stacks.append(group)
    return stacks


def _stages(config: Any) -> list[int]:
    """Return the number of layers of each stage, or an empty list for a config without stages."""
    values = (getattr(config, name, None) for name in DEPTHS)
    return next((list(value) for value in values if isinstance(value, list | tuple)), [])


def _counts(config: Any, path: str) -> list[str]:
    """Return the attributes of a config that count the layers of a list, the decisive one first.

    In a config for an encoder with a decoder, num_hidden_layers is another name for that of the encoder.
    """
    names = ["num_hidden_layers"]
    if "decoder" in path.split("."):
        names = [name for name in ("decoder_layers", "num_decoder_layers") if hasattr(config, name)] + names
    return names


def _renumber(layer: nn.Module, old: int, new: int) -> None:
    for module in layer.modules():
        for name, value in vars(module).items():
            # Some models count from 1.
            if _INDEX_ATTRIBUTE.fullmatch(name) and value in (old, old + 1):
                setattr(module, name, value - old + new)


def _spread_rates(network: nn.Module, kept: dict[str, list[int]]) -> None:
    """Give the kept layers the stochastic depth of a new model with the same config."""
    try:
        with torch.random.fork_rng(), torch.device("meta"):  # no memory, no weights
            fresh = cast(Any, type(network))(copy.deepcopy(config_of(network)))
    except Exception:  # a config that builds no model has no rates to copy
        return
    for path, indices in kept.items():
        for new, old in enumerate(indices):
            for name, module in fresh.get_submodule(f"{path}.{new}").named_modules():
                if name.endswith(_DROP_PATH):
                    layer = network.get_submodule(f"{path}.{old}")
                    layer.set_submodule(name, module.train(layer.training))


def _update_surroundings(module: nn.Module, config: Any, depth: int, kinds: set[str]) -> None:
    """Update the depth and the kinds of layers that a module outside the list of layers stores.

    Args:
        module: the module to update, in place.
        config: its config, already shortened.
        depth: the number of layers before the removal.
        kinds: the kinds of layers before the removal (`layer_types`).
    """
    for name in _DEPTH_ATTRIBUTES:
        if vars(module).get(name) == depth:
            setattr(module, name, config.num_hidden_layers)
    removed_kinds = kinds.difference(getattr(config, "layer_types", None) or ())
    attributes = cast(Any, module)
    if "sliding_attention" in removed_kinds and hasattr(module, "has_sliding_layers"):
        attributes.has_sliding_layers = False
    if removed_kinds and isinstance(vars(module).get("layer_types"), list):  # one rotary embedding per kind
        attributes.layer_types = [kind for kind in attributes.layer_types if kind not in removed_kinds]


def _narrow_contact_head(module: nn.Module, depth: int, kept: list[int]) -> None:
    """Keep only the inputs of ESM's head for contacts that are the attention heads of kept layers, in place."""
    regression = getattr(module, "regression", None)
    if type(module).__name__ != "EsmContactPredictionHead" or not isinstance(regression, nn.Linear):
        return
    heads = regression.in_features // depth
    columns = [layer * heads + head for layer in kept for head in range(heads)]
    weight = regression.weight
    regression.weight = nn.Parameter(weight.detach()[:, columns].clone(), requires_grad=weight.requires_grad)
    regression.in_features = len(columns)
    cast(Any, module).in_features = len(columns)


def _moved_device_map(device_map: dict, stack: str, kept: list[int]) -> dict:
    """Return the device map of accelerate with the new paths of the kept layers."""
    moved = {}
    for path, device in device_map.items():
        index, _, rest = path.removeprefix(f"{stack}.").partition(".")
        if not path.startswith(f"{stack}."):
            moved[path] = device
        elif int(index) in kept:
            moved[".".join(filter(None, (stack, str(kept.index(int(index))), rest)))] = device
    return moved
