"""Builds networks from dotted names, and remembers with each network how it was built and what was removed from it."""

import importlib
import re
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from sglp.errors import ArchitectureError, SGLPError, first_line
from sglp.hugging_face.networks import config_entries, hub_name, is_pretrained, reads_images
from sglp.record import GENERIC, KNOWN_LIBRARIES, Architecture, of_known_library
from sglp.running import seeded

# Arguments that fetch weights: they are for the making of the dense network, never for loading a saved one.
WEIGHT_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path")
_ATTRIBUTE = "_sglp_architecture"


def build(factory: str, kwargs: dict | None = None, *, seed: int | None = None, weights: dict | None = None):
    """Build a network from the dotted name of its factory, so that `save` and `prune` know how it was built.

    Args:
        factory: "package.module:function", as "torchvision.models:resnet50".
        kwargs: arguments of the factory.
        seed: of the random weights; the caller's random state is left alone. None draws from that state.
        weights: further arguments that fetch weights, as {"weights": "IMAGENET1K_V2"}; they are not remembered.

    Raises:
        ArchitectureError: there is no such factory, it fails, or it returns no module.
    """
    kwargs = dict(kwargs or {})
    fetching = [key for key in kwargs if key in WEIGHT_ARGUMENTS]
    if fetching:
        raise ArchitectureError(f"the argument {fetching[0]!r} of {factory} fetches weights: give it as one of weights")
    make = resolve(factory)
    # Of the CPU alone: to look at the states of all GPUs takes time.
    with nullcontext() if seed is None else seeded(seed, torch.device("cpu")):
        try:
            network = make(**kwargs, **(weights or {}))
        except SGLPError:
            raise
        except Exception as error:  # whatever a factory raises, the user needs one sentence
            arguments = {**kwargs, **(weights or {})}
            raise ArchitectureError(f"{factory} can't build a network from {arguments}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(f"{factory} returned a {type(network).__name__}, but a factory returns a torch module")
    setattr(network, _ATTRIBUTE, Architecture(factory, kwargs))
    return network


def architecture_of(network: nn.Module) -> Architecture | None:
    """How a network was built, if it is known; transformers' own are by their class and config.

    Of one that reads images the dense network's config is kept: not every config can say what is left.
    """
    architecture = getattr(network, _ATTRIBUTE, None)
    if not is_pretrained(network):
        return architecture
    name = type(network)._auto_class or type(network).__name__
    known = architecture or Architecture("", base_model=hub_name(network))
    if known.factory == f"transformers:{name}":
        return known
    kwargs = {"config": config_entries(network.config)} if reads_images(network) else {}
    return replace(known, factory=f"transformers:{name}", kwargs=kwargs)


def remember(network: nn.Module, architecture: Architecture) -> None:
    """Note with a network how it was built."""
    setattr(network, _ATTRIBUTE, architecture)


def resolve(name: str):
    """What a dotted name "package.module:attribute" stands for.

    Raises:
        ArchitectureError: the name is malformed, or there is no such module or attribute.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        raise ArchitectureError(f"{name!r} is no dotted name: write package.module:function")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ArchitectureError(f"{name}: the module {module} can't be imported ({error})") from error
    except AttributeError as error:
        raise ArchitectureError(f"{name}: the module {module} has no {attribute}") from error


def is_known(factory: str) -> bool:
    """Whether a factory is a public network of a known library, safe to call with arguments from a file."""
    if factory in GENERIC:
        return True
    if not of_known_library(factory):
        return False
    home = getattr(resolve(factory), "__module__", "") or ""
    inside = any(home == library or home.startswith(f"{library}.") for library in KNOWN_LIBRARIES)
    return inside and not any(part.startswith("_") for part in home.split("."))
