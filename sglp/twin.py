"""A network of the same architecture with random weights."""

import copy

import torch
from torch import nn

from sglp.architecture import architecture_of, build
from sglp.errors import ArchitectureError
from sglp.surgery import drop_modules


def random_twin(network: nn.Module, seed: int) -> nn.Module:
    """A network of the same architecture with random weights, from the same factory where that is known.

    Raises:
        ArchitectureError: the factory is not known and a module has parameters but no `reset_parameters`.
    """
    architecture = architecture_of(network)
    if architecture is not None:
        fresh = build(architecture.factory, architecture.kwargs, seed=seed)
        drop_modules(fresh, architecture.removed_modules)
        return fresh
    fresh = copy.deepcopy(network)
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for path, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif hasattr(module, "_reset_parameters"):
                module._reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ArchitectureError(
                    f"{path or type(module).__name__} has parameters but no reset_parameters(): build the network with "
                    "sglp.build('package.module:function'), so that a random one can be made"
                )
    return fresh
