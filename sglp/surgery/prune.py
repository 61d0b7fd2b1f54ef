"""Remove layers from a network; the result is a smaller ordinary module."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sglp.architecture import architecture_of, remember
from sglp.errors import PlanError, first_line
from sglp.hugging_face.caches import cache_fault
from sglp.hugging_face.networks import leave_out, module_list, stack_of
from sglp.hugging_face.wrapping import inner_models, inside, refusal, renumber_adapters
from sglp.layer import BRANCH, branch_paths, module_paths
from sglp.plan import Plan
from sglp.record import Architecture
from sglp.running import main_input


class PassThrough(nn.Identity):
    """An identity in place of a removed layer: it takes any arguments and returns the main input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the main input; see `main_input`."""
        return main_input(args, kwargs)


class NoBranch(PassThrough):
    """What a removed branch leaves where its parent needs a module: it takes any arguments and returns zeros."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape of the main input, which the parent adds to it."""
        return torch.zeros_like(main_input(args, kwargs))


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a copy of a network without the layers that a plan removes.

    Children of an `nn.Sequential` or `nn.ModuleList` are removed and the rest renumbered. A module that its parent
    calls by attribute is replaced by an identity, or by a module that returns zeros if the parent adds its output to a
    residual stream; so are the parts of a list item. The config of a Hugging Face model is updated.

    Args:
        model: the network that the plan was made for; left unchanged.
        plan: layer names from `find_layers` for this network; whether they are removable is not checked again.

    Raises:
        PlanError: the network has no such layer, its config can't describe the result, or it can't be copied.
    """
    modules = dict(model.named_modules())
    for name in (*plan.kept, *plan.removed):
        missing = [path for path in module_paths(name) if path not in modules]
        if missing:
            raise PlanError(f"the plan names the layer {name}, but {type(model).__name__} has no module {missing[0]}")
    removed = plan.removed_modules
    if removed and (reason := refusal(model)):
        raise PlanError(reason)
    try:
        pruned = copy.deepcopy(model)
    except RuntimeError as error:  # a module holds tensors of a forward pass with gradients
        raise PlanError(f"this {type(model).__name__} can't be copied: {first_line(error)}") from error
    remove_layers(pruned, plan)
    for path, inner in inner_models(pruned).items():
        if inside(path, removed) and (fault := cache_fault(inner, model.get_submodule(path))):
            raise PlanError(
                f"{type(inner).__name__} can't lose {', '.join(plan.removed)} together: what is left does not run with "
                f"a cache ({fault}). Keep one of them, such as a layer with attention"
            )
    return pruned


def remove_layers(network: nn.Module, plan: Plan) -> None:
    """Remove the layers of a plan from a network, in place; the Hugging Face models in it are updated.

    Raises:
        PlanError: the config of a Hugging Face model can't describe the result.
    """
    architectures = {
        path: pruned_architecture(architecture, inside(path, plan.kept), removed, module)
        for path, module in network.named_modules()
        if (removed := inside(path, plan.removed)) and (architecture := architecture_of(module)) is not None
    }
    remove_modules(network, plan.removed)
    for path, architecture in architectures.items():
        remember(network.get_submodule(path), architecture)


def remove_modules(network: nn.Module, names: Iterable[str]) -> None:
    """Remove layers from a network, in place, and update the Hugging Face models that they are in.

    Args:
        network: the network.
        names: names of the layers, with paths as they are before the removal.

    Raises:
        PlanError: the config of a Hugging Face model can't describe the result.
    """
    names = list(names)
    paths = [path for name in names for path in module_paths(name)]
    stacks = []
    for path, inner in inner_models(network).items():
        if removed := inside(path, paths):
            stacks.append((inner, stack_of(inner, removed), removed))
    for inner, stack, removed in stacks:
        if stack is None:
            continue
        if len(stack) == 1:
            depth = len(module_list(inner, stack[0]))
            renumber_adapters(network, [i for i in range(depth) if f"{stack[0]}.{i}" not in removed])
        leave_out(inner, stack, removed)
    drop_modules(network, names)


def drop_modules(network: nn.Module, names: Iterable[str]) -> None:
    """Remove layers from a network, in place, their modules under all names.

    Args:
        network: the network.
        names: names of the layers, with paths as they are before the removal.
    """
    names = list(names)
    removed = {network.get_submodule(path) for name in names for path in module_paths(name)}
    branches = {network.get_submodule(path) for name in names for path in branch_paths(name)}
    parts = [module for parent in network.modules() if _is_list(parent) for module in parent.children()]
    items = {module for module in parts if isinstance(module, nn.ModuleList)}
    for parent in list(network.modules()):
        dropped = [name for name, child in parent._modules.items() if child in removed]
        # Whoever unpacks an item of a list, such as a pair of attention and feed-forward part, needs all its parts.
        is_unpacked = parent in items and any(parent._modules[name] in branches for name in dropped)
        if dropped and runs_in_a_row(parent) and not is_unpacked:
            _keep(parent, {name: child for name, child in parent._modules.items() if name not in dropped})
        else:
            for name in dropped:
                setattr(parent, name, NoBranch() if parent._modules[name] in branches else PassThrough())


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _keep(parent: nn.Module, children: dict[str, nn.Module | None]) -> None:
    """Keep only some children; numbers are made consecutive, and other names are kept."""
    is_numbered = all(name.isdigit() for name in parent._modules)
    parent._modules.clear()
    for i, (name, module) in enumerate(children.items()):
        parent.register_module(str(i) if is_numbered else name, module)


def pruned_architecture(
    architecture: Architecture, kept: Iterable[str], removed: Iterable[str], network: nn.Module
) -> Architecture:
    """Return the architecture record after one more plan.

    Args:
        architecture: the record of the network, which may be pruned already.
        kept, removed: the plan's layer names, as in `network`.
        network: the network before the plan is applied.
    """
    removed_before = set(Plan.from_architecture(architecture).removed_modules)
    dense = {
        name: "+".join(
            _dense_path(path.removesuffix(BRANCH), removed_before, network) + BRANCH * path.endswith(BRANCH)
            for path in name.split("+")
        )
        for name in (*kept, *removed)
    }
    return replace(
        architecture,
        kept=tuple(dense[name] for name in kept),
        removed=(*architecture.removed, *(dense[name] for name in removed)),
    )


def runs_in_a_row(parent: nn.Module) -> bool:
    """Check whether the parent only iterates over its children, so that some can be removed and the rest renumbered."""
    is_plain_sequential = isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward
    return is_plain_sequential or isinstance(parent, nn.ModuleList)


def _dense_path(path: str, removed: set[str], parent: nn.Module) -> str:
    """Convert a path in a pruned network to the path in the dense one, where removed children have indices too."""
    dense = ""
    for part in path.split("."):
        prefix = f"{dense}." if dense else ""
        child = parent.get_submodule(part)
        keeps_numbers = any(isinstance(module, NoBranch) for module in parent.children())
        if part.isdigit() and runs_in_a_row(parent) and not keeps_numbers:
            kept_to_pass = int(part)
            index = -1
            while kept_to_pass >= 0:
                index += 1
                kept_to_pass -= f"{prefix}{index}" not in removed
            part = str(index)
        dense = f"{prefix}{part}"
        parent = child
    return dense
