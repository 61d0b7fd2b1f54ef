"""When layers leave a network of transformers, its config and the numbers of the other layers follow.

A config counts layers as `num_hidden_layers`, all in one list of modules, or stage by stage as `depths`, a list of
modules each. transformers itself is not imported here: a network is known by its class, a config by what stands in it.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from sglp.errors import PlanError
from sglp.hugging_face.config import DEPTHS, shorten, shorten_stages

# What in a config says that one layer needs another: the attribute, what must stand in it, and the reason to give.
_TIES = (
    ("num_kv_shared_layers", None, "its last {} layers read the keys and values of earlier ones"),
    ("kv_source_layers", None, "some of its layers read the keys and values of others"),
    ("indexer_types", "shared", "some of its layers attend to what an earlier one selected"),
    ("hidden_size_per_layer_input", None, "each of its layers has a part of one embedding"),
    ("num_hidden_groups", None, "its layers are a few modules that run several times"),
    ("layers_block_type", "hybrid", "some of its layers share one block"),
)
# How modules name their number, and how those around the layers name the depth.
_NUMBER = re.compile(r"(layer|block)_(idx|id|index|num|number)")
_DROP = "drop_path"
_DEPTH = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "first_kv_shared_layer_idx")


def is_pretrained(network: nn.Module) -> bool:
    """Whether a network is a `PreTrainedModel` of transformers."""
    home = ("transformers.modeling_utils", "PreTrainedModel")
    return any((kind.__module__, kind.__name__) == home for kind in type(network).__mro__)


def hub_name(network: nn.Module) -> str:
    """The name on the hub that a network was loaded by, or "" where it was loaded from a folder or not at all."""
    name = getattr(network.config, "_name_or_path", None) or ""
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists() else ""


def config_entries(config) -> dict:
    """What stands in a config, for JSON; names of local folders left out."""
    nameless = copy.deepcopy(config)
    for part in configs_of(nameless):
        part._name_or_path = ""
    return json.loads(nameless.to_json_string())


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


def reads_images(network: nn.Module) -> bool:
    """Whether a network of transformers reads pixels first."""
    return network.main_input_name == "pixel_values"


def stacked_layers(network: nn.Module) -> set[str]:
    """The paths of the modules in the lists that the config counts."""
    return {
        f"{path}.{number}"
        for stack in _stacks(network)
        for path in stack
        for number in range(len(network.get_submodule(path)))
    }


def stack_of(network: nn.Module, paths: Sequence[str]) -> list[str] | None:
    """The paths of the lists, one or one a stage, that the config counts and that all these layers are in.

    None says that the config does not count them, in a network that reads images: they can go, but no config says so.

    Raises:
        PlanError: the config does not count them, in a network that reads tokens, or the layers need each other.
    """
    ties = ties_between_layers(network)
    if ties:
        raise PlanError(ties)
    parents = {path.rpartition(".")[0] for path in paths}
    stack = next((stack for stack in _stacks(network) if parents <= set(stack)), None)
    known = stack and any(part is _config_of(network, stack[0]) for part in configs_of(network.config))
    config = _config_of(network, stack[0]) if known else network.config
    if config.is_encoder_decoder or not (known or reads_images(network)):
        raise PlanError(
            f"{type(network).__name__} can't lose {' and '.join(paths)}: what can go are layers of one list that is as "
            "long as its config's num_hidden_layers, in a network that is no encoder with a decoder"
        )
    if not known:
        return None
    depth = sum(len(network.get_submodule(path)) for path in stack)
    if len(paths) == depth:
        raise PlanError(f"{type(network).__name__} can't lose all its {depth} layers: keep one at least")
    return stack


def leave_out(network: nn.Module, stack: Sequence[str], paths: Iterable[str]) -> None:
    """Let the config and the numbers of the other layers follow, in place, before layers are taken out of a stack.

    Rates of stochastic depth, which grow along the depth, become those of a network of the new config.
    """
    paths, config = set(paths), _config_of(network, stack[0])
    lists = {path: network.get_submodule(path) for path in stack}
    kept = {path: [i for i in range(len(lists[path])) if f"{path}.{i}" not in paths] for path in stack}
    if _stages(config):
        shorten_stages(config, [len(numbers) for numbers in kept.values()])
    else:
        (path,) = stack
        depth, kinds = len(lists[path]), {*(getattr(config, "layer_types", None) or ())}
        shorten(config, depth, kept[path])
        for other, module in network.named_modules():
            if not other.startswith(f"{path}.") and _config_of(network, other) is config:
                _follow(module, config, depth, kinds)
    for path, numbers in kept.items():
        for new, old in enumerate(numbers):
            _renumber(lists[path][old], old, new)
    if any(name.endswith(_DROP) for name, _ in network.named_modules()) and getattr(config, "drop_path_rate", None):
        _spread_rates(network, kept)
    for path, numbers in kept.items():
        if getattr(network, "hf_device_map", None):
            network.hf_device_map = _moved(network.hf_device_map, path, numbers)


def _stacks(network: nn.Module) -> list[list[str]]:
    """The lists of modules that are as long as a config says, those inside of others left out."""
    groups: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            stages = _stages(_config_of(network, path))
            # Lists of stages have paths that differ in the last number.
            of = re.sub(r"\d+(?=\D*$)", "*", path) if stages else path
            groups.setdefault(of, []).append(path)
    stacks: list[list[str]] = []
    for group in sorted(groups.values(), key=lambda paths: paths[0].count(".")):
        config, lists = _config_of(network, group[0]), [network.get_submodule(path) for path in group]
        counted = _stages(config) or [_depth(config)]
        plain = _stages(config) or isinstance(lists[0], nn.ModuleList)
        inside = any(group[0].startswith(f"{path}.") for stack in stacks for path in stack)
        if plain and not inside and [len(modules) for modules in lists] == counted:
            stacks.append(group)
    return stacks


def _stages(config) -> list[int]:
    """How many layers each stage has, or nothing where a config knows no stages."""
    found = (getattr(config, name, None) for name in DEPTHS)
    return next((list(value) for value in found if isinstance(value, list | tuple)), [])


def _renumber(layer: nn.Module, old: int, new: int) -> None:
    for module in layer.modules():
        for name, value in vars(module).items():
            # Some count from 1.
            if _NUMBER.fullmatch(name) and value in (old, old + 1):
                setattr(module, name, value - old + new)


def _spread_rates(network: nn.Module, kept: dict[str, list[int]]) -> None:
    """Give the layers that stay the stochastic depth of a fresh network of the same config."""
    try:
        with torch.random.fork_rng(), torch.device("meta"):  # no memory, no weights
            fresh = type(network)(copy.deepcopy(network.config))
    except Exception:  # a config that makes no network has no rates to give
        return
    for path, numbers in kept.items():
        for new, old in enumerate(numbers):
            for name, module in fresh.get_submodule(f"{path}.{new}").named_modules():
                if name.endswith(_DROP):
                    layer = network.get_submodule(f"{path}.{old}")
                    layer.set_submodule(name, module.train(layer.training))


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
