"""A network of the same architecture with random weights."""

import copy

import numpy as np
import torch
from torch import nn

from sglp.architecture import architecture_of, build, remember
from sglp.errors import ArchitectureError
from sglp.hugging_face.networks import is_pretrained
from sglp.plan import Plan
from sglp.running import device_of, seeded
from sglp.surgery.prune import drop_modules, prune

BUILD = "build the network as it is with sglp.build('package.module:function'), so that a random one can be made"
SEED_STREAM = 2718281828  # any number; it is the twins' own


def reinitialized(network: nn.Module, seed: int) -> nn.Module:
    """A network of the same architecture with random weights, from the same factory where that is known.

    It has the data type of the given one, and no parameter is frozen. One of transformers is made from its config, on
    the given one's device; one that was changed after its factory had made it, module by module.

    Raises:
        ArchitectureError: the factory is not known, or makes another network, and a module has parameters but no
            `reset_parameters`, or one that leaves some as they were.
    """
    seed = init_seed(seed)
    fresh = _from_config(network, seed) if is_pretrained(network) else _from_factory(network, seed)
    if fresh is None:
        fresh = _module_by_module(network, seed)
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fresh


def _from_factory(network: nn.Module, seed: int) -> nn.Module | None:
    """What the factory makes, or None where that is not known, or not this network (whose head was replaced since)."""
    architecture = architecture_of(network)
    if architecture is None:
        return None
    fresh = build(architecture.factory, architecture.kwargs, seed=seed)
    drop_modules(fresh, Plan.from_architecture(architecture).removed_modules)
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
    for (name, drawn), trained in zip(fresh.named_parameters(), network.parameters(), strict=True):
        if torch.equal(drawn, trained) and (drawn != drawn.flatten()[:1]).any():  # the old weight_norm does so
            raise ArchitectureError(f"{name} is not drawn anew by its module's reset_parameters(): {BUILD}")
    return fresh


def init_seed(seed: int) -> int:
    """What torch draws a twin's weights with.

    With the seed itself a network that was trained from it, as the pipeline's, would get its own first weights back,
    which trained ones are still like.
    """
    return int(np.random.SeedSequence([SEED_STREAM, seed]).generate_state(1)[0])


def _from_config(network: nn.Module, seed: int) -> nn.Module:
    usual = torch.get_default_dtype()
    with seeded(seed, device_of(network)), torch.device(device_of(network)):
        # A large network should never be there in single precision, or on the CPU.
        torch.set_default_dtype(network.dtype)
        try:
            fresh = type(network)(copy.deepcopy(network.config))
            if len(list(fresh.modules())) != len(list(network.modules())):  # its config can't say what is left of it
                known = architecture_of(network)
                dense = type(network)(network.config_class.from_dict(known.kwargs["config"]))
                fresh = prune(dense, Plan.from_architecture(known))
        finally:
            torch.set_default_dtype(usual)
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    for name, parameter in fresh.named_parameters():
        # Some networks keep some parameters in single precision.
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    remember(fresh, architecture_of(network))
    return fresh.train(network.training)
