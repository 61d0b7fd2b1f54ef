"""Build networks from dotted names, and record on each network how it was built and which layers were removed."""

import importlib
import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sglp.errors import ArchitectureError, SGLPError, first_line
from sglp.hugging_face.networks import config_entries, hub_name, is_pretrained
from sglp.record import GENERIC, KNOWN_LIBRARIES, Architecture, is_known_library
from sglp.running import seeded

# Arguments that fetch weights: used to make a dense network, never to load a saved one.
WEIGHT_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path")
_ATTRIBUTE = "_sglp_architecture"


def build(
    factory: str, kwargs: dict | None = None, *, seed: int | None = None, weights: dict | None = None
) -> nn.Module:
    """Build a network from the dotted name of its factory, and record how for `save` and `prune`.

    Args:
        factory: "package.module:function", such as "torchvision.models:resnet50".
        kwargs: arguments of the factory.
        seed: seeds the random weights without changing the caller's random state; None draws from that state.
        weights: further arguments that fetch weights, such as {"weights": "IMAGENET1K_V2"}; they are not recorded.

    Raises:
        ArchitectureError: the factory does not exist, fails, or does not return a module.
    """
    kwargs = dict(kwargs or {})
    fetching = [key for key in kwargs if key in WEIGHT_ARGUMENTS]
    if fetching:
        raise ArchitectureError(
            f"the argument {fetching[0]!r} of {factory} fetches weights: pass it in weights, not in kwargs"
        )
    make = resolve(factory)
    # Only the CPU is seeded: saving the states of all GPUs takes time.
    with nullcontext() if seed is None else seeded(seed, torch.device("cpu")):
        try:
            network = make(**kwargs, **(weights or {}))
        except SGLPError:
            raise
        except Exception as error:  # whatever a factory raises, the user needs one sentence
            arguments = {**kwargs, **(weights or {})}
            raise ArchitectureError(f"{factory} can't build a network from {arguments}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"{factory} returned a {type(network).__name__}, but a factory must return a torch module"
        )
    setattr(network, _ATTRIBUTE, Architecture(factory, kwargs))
    return network


def architecture_of(network: nn.Module) -> Architecture | None:
    """Return how a network was built, or None if this is unknown.

    A Hugging Face model is described by its class and the dense network's config: not every config can describe the
    pruned network.
    """
    architecture = getattr(network, _ATTRIBUTE, None)
    if not is_pretrained(network):
        return architecture
    name = getattr(type(network), "_auto_class", None) or type(network).__name__
    recorded = architecture or Architecture("", base_model=hub_name(network))
    if recorded.factory == f"transformers:{name}":
        return recorded
    kwargs = {"config": config_entries(network.config)}
    return replace(recorded, factory=f"transformers:{name}", kwargs=kwargs)


def remember(network: nn.Module, architecture: Architecture) -> None:
    """Record on a network how it was built."""
    setattr(network, _ATTRIBUTE, architecture)


def resolve(name: str) -> Any:
    """Import the object with the dotted name "package.module:attribute".

    Raises:
        ArchitectureError: the name is malformed, or the module or the attribute does not exist.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        raise ArchitectureError(f"{name!r} is not a dotted name: write package.module:function")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ArchitectureError(f"{name}: the module {module} can't be imported ({error})") from error
    except AttributeError as error:
        raise ArchitectureError(f"{name}: the module {module} has no {attribute}") from error


def is_known(factory: str) -> bool:
    """Check whether a factory is a public network of a known library, safe to call with arguments from a file."""
    if factory in GENERIC:
        return True
    if not is_known_library(factory):
        return False
    home = getattr(resolve(factory), "__module__", "") or ""
    inside = any(home == library or home.startswith(f"{library}.") for library in KNOWN_LIBRARIES)
    return inside and not any(part.startswith("_") for part in home.split("."))
