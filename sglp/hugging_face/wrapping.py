"""Hugging Face models inside other modules: PEFT, DataParallel, a user's module, several models in a row."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from sglp.hugging_face.networks import is_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Wrappers that keep track of the parameters of the module inside, which surgery would not update.
_TRACKING = ("DistributedDataParallel", "FullyShardedDataParallel")
_TRANSPARENT = ("DataParallel", "DistributedDataParallel")
_LAYER_NUMBER = re.compile(r"(^|\.)\d+(\.|$)")


def inner_models(network: nn.Module) -> dict[str, "PreTrainedModel"]:
    """Return the outermost Hugging Face models in a network by path; the path of the network itself is ""."""
    models: dict[str, PreTrainedModel] = {}
    seen: set[nn.Module] = set()
    for path, module in network.named_modules():
        if module not in seen and is_pretrained(module):
            models[path] = module
            seen.update(module.modules())
    return models


def inside(prefix: str, paths: Iterable[str]) -> list[str]:
    """Return the paths, or names of layers, that are inside the module at a path, relative to it."""
    start = f"{prefix}." if prefix else ""
    parts = [path.split("+") for path in paths if path.startswith(start)]  # what is a branch stays one
    return ["+".join(path.removeprefix(start) for path in layer) for layer in parts]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the module inside wrappers that only distribute it, such as `nn.DataParallel`."""
    while type(network).__name__ in _TRANSPARENT and type(network).__module__.startswith("torch.nn.parallel"):
        network = network.get_submodule("module")
    return network


def refusal(network: nn.Module) -> str:
    """Return the reason why layers can't be removed from a wrapped network, as a sentence, or ""."""
    for path, module in network.named_modules():
        kind = type(module).__name__
        if kind in _TRACKING and type(module).__module__.startswith("torch."):
            inner = f"its .module (at {path})" if path else "its .module"
            return f"{kind} keeps track of all parameters inside it: pass {inner} and wrap the pruned network again"
        for name, adapter in _adapters(module).items():
            if named := _numbered(adapter):
                return (
                    f"the adapter {name!r} names single layers in its {named}, whose numbers would change: merge it "
                    "(merge_and_unload), and pass the merged model"
                )
    return ""


def has_adapters(network: nn.Module) -> bool:
    """Check whether a network contains modules of PEFT."""
    return any(type(module).__module__.startswith("peft.") for module in network.modules())


def renumber_adapters(network: nn.Module, kept: list[int]) -> None:
    """Update the indices of layers that the adapters around or in a network name, in place."""
    # Several modules hold the same config of an adapter.
    adapters = {id(adapter): adapter for module in network.modules() for adapter in _adapters(module).values()}
    for adapter in adapters.values():
        chosen = getattr(adapter, "layers_to_transform", None)
        if isinstance(chosen, int):
            chosen = [chosen]
        if chosen is not None:
            adapter.layers_to_transform = [kept.index(i) for i in chosen if i in kept]


def _adapters(module: nn.Module) -> dict[str, Any]:
    """Return the configs of PEFT on a module, by the names of the adapters."""
    adapters = vars(module).get("peft_config")
    return adapters if isinstance(adapters, dict) else {}


def _numbered(adapter: Any) -> str:
    """Return the attribute of an adapter's config that names modules by their indices, or ""."""
    for name in ("target_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"):
        value = getattr(adapter, name, None)
        names = [value] if isinstance(value, str) else list(value or ())
        if any(_LAYER_NUMBER.search(str(entry)) for entry in names):
            return name
    return ""
