"""Re-initialise a network: build one of the same architecture with random weights."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sglp.architecture import architecture_of, build, remember
from sglp.errors import ArchitectureError
from sglp.hugging_face.networks import is_pretrained
from sglp.plan import Plan
from sglp.running import device_of, seeded
from sglp.surgery.prune import remove_layers, remove_modules

BUILD = "build the network with sglp.build('package.module:function'), so that it can be re-initialised"
SEED_STREAM = 2718281828  # an arbitrary number, used only for the weights of re-initialised networks


def reinitialized(network: nn.Module, seed: int) -> nn.Module:
    """Return a network of the same architecture and data type with random weights; no parameter is frozen.

    A Hugging Face model is built from its config, on the device of `network`; any other network by its factory. If the
    factory is unknown or the network was changed after it was built, a copy is re-initialised module by module.

    Raises:
        ArchitectureError: in a copy, a module has parameters but no `reset_parameters`, or `reset_parameters` leaves
            some of them unchanged.
    """
    seed = init_seed(seed)
    fresh = _from_config(network, seed) if is_pretrained(network) else _from_factory(network, seed)
    if fresh is None:
        fresh = _module_by_module(network, seed)
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fresh


def _from_factory(network: nn.Module, seed: int) -> nn.Module | None:
    """Return the network that the factory makes, or None if the factory is unknown or its network is another one.

    A network differs from what its factory makes if, for example, its head was replaced.
    """
    architecture = architecture_of(network)
    if architecture is None:
        return None
    fresh = build(architecture.factory, architecture.kwargs, seed=seed)
    remove_modules(fresh, architecture.removed)
    if repr(fresh) != repr(network) or _shapes(fresh) != _shapes(network):
        return None
    dtypes = (p.dtype for p in network.parameters() if p.is_floating_point())
    return fresh.to(next(dtypes, torch.get_default_dtype()))


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def _module_by_module(network: nn.Module, seed: int) -> nn.Module:
    fresh = copy.deepcopy(network)
    with seeded(seed, device_of(network)):
        for path, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif hasattr(module, "_reset_parameters"):
                module._reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ArchitectureError(
                    f"{path or type(module).__name__} has parameters but no reset_parameters(): {BUILD}"
                )
    for (name, new), trained in zip(fresh.named_parameters(), network.parameters(), strict=True):
        if torch.equal(new, trained) and (new != new.flatten()[:1]).any():  # such as with the old weight_norm
            raise ArchitectureError(f"{name} is not changed by its module's reset_parameters(): {BUILD}")
    return fresh


def init_seed(seed: int) -> int:
    """Return the seed of torch for the weights of a re-initialised network.

    It differs from `seed`: otherwise a network that was trained from this seed, such as the pipeline's, would get its
    initial weights back, which trained weights still resemble.
    """
    return int(np.random.SeedSequence([SEED_STREAM, seed]).generate_state(1)[0])


def _from_config(network: Any, seed: int) -> nn.Module:
    """Build a Hugging Face model from its config."""
    architecture = architecture_of(network)
    assert architecture is not None  # every Hugging Face model has one
    default_dtype = torch.get_default_dtype()
    with seeded(seed, device_of(network)), torch.device(device_of(network)):
        # A large network must never exist in single precision or on the CPU.
        torch.set_default_dtype(network.dtype)
        try:
            fresh: nn.Module = type(network)(copy.deepcopy(network.config))
            # The config of some pruned networks describes the dense one.
            if len(list(fresh.modules())) != len(list(network.modules())):
                dense = type(network)(network.config_class.from_dict(architecture.kwargs["config"]))
                remove_layers(dense, Plan.from_architecture(architecture))
                fresh = dense
        finally:
            torch.set_default_dtype(default_dtype)
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    for name, parameter in fresh.named_parameters():
        # Some networks have some parameters in single precision.
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    remember(fresh, architecture)
    return fresh.train(network.training)
