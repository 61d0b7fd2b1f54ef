"""Takes layers out of a network; what is left is a smaller ordinary module."""

import copy
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from sglp.architecture import architecture_of, remember
from sglp.errors import PlanError, first_line
from sglp.hugging_face.networks import is_pretrained, leave_out, stack_of
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.record import Architecture
from sglp.running import main_input


class PassThrough(nn.Identity):
    """An identity that hands on the first of its arguments, whatever further ones a layer was given in its place."""

    def forward(self, *args, **kwargs):
        """What the layer was given."""
        return main_input(args, kwargs)


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """A new network without the layers that a plan removes; the given one is left as it is.

    Children of an `nn.Sequential` or `nn.ModuleList` are taken out and the rest renumbered. A module that its parent
    calls by attribute is replaced by an identity. The config of a network of transformers says afterwards what is left.

    Args:
        model: the network that the plan was made for.
        plan: names as `find_layers` gave them for this network; that they are removable is not checked again.

    Raises:
        PlanError: the network has no such layer, its config can't say what is left, or it can't be copied.
    """
    known = dict(model.named_modules())
    for name in (*plan.kept, *plan.removed):
        missing = [path for path in module_paths(name) if path not in known]
        if missing:
            raise PlanError(f"the plan names the layer {name}, but {type(model).__name__} has no module {missing[0]}")
    removed = plan.removed_modules
    stack = stack_of(model, removed) if removed and is_pretrained(model) else None
    try:
        pruned = copy.deepcopy(model)
    except RuntimeError as error:  # of tensors that a forward pass with gradients has left in a module
        raise PlanError(f"this {type(model).__name__} can't be copied: {first_line(error)}") from error
    if stack is not None:
        leave_out(pruned, stack, removed)
    drop_modules(pruned, removed)
    architecture = architecture_of(model)
    if architecture is not None:
        remember(pruned, pruned_architecture(architecture, plan.kept, plan.removed, model))
    return pruned


def drop_modules(network: nn.Module, paths: Iterable[str]) -> None:
    """Take modules out of a network, in place, by their paths before the first of them went, under all their names."""
    gone = {network.get_submodule(path) for path in paths}
    for parent in list(network.modules()):
        names = [name for name, child in parent._modules.items() if child in gone]
        if names and runs_in_a_row(parent):
            _keep(parent, {name: child for name, child in parent._modules.items() if name not in names})
        else:
            for name in names:
                setattr(parent, name, PassThrough())


def _keep(parent: nn.Module, children: dict[str, nn.Module]) -> None:
    """Keep only these children; numbers are made consecutive again, other names stay."""
    numbered = all(name.isdigit() for name in parent._modules)
    parent._modules.clear()
    for i, (name, module) in enumerate(children.items()):
        parent.register_module(str(i) if numbered else name, module)


def pruned_architecture(architecture: Architecture, kept, removed, network: nn.Module) -> Architecture:
    """The architecture after one more plan, whose names are those of the network as it is now."""
    gone = set(Plan.from_architecture(architecture).removed_modules)
    dense = {
        name: "+".join(_dense_path(path, gone, network) for path in module_paths(name)) for name in (*kept, *removed)
    }
    return replace(
        architecture,
        kept=tuple(dense[name] for name in kept),
        removed=(*architecture.removed, *(dense[name] for name in removed)),
    )


def runs_in_a_row(parent: nn.Module) -> bool:
    """Whether a child can be left out and the rest renumbered: the parent only iterates over its children."""
    plain_sequential = isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward
    return plain_sequential or isinstance(parent, nn.ModuleList)


def _dense_path(path: str, gone: set[str], parent: nn.Module) -> str:
    """A path in a pruned network as it is in the dense one: numbers of children count those that went before them."""
    dense = ""
    for part in path.split("."):
        prefix = f"{dense}." if dense else ""
        child = parent.get_submodule(part)
        if part.isdigit() and runs_in_a_row(parent):
            left = int(part)
            number = -1
            while left >= 0:
                number += 1
                left -= f"{prefix}{number}" not in gone
            part = str(number)
        dense, parent = f"{prefix}{part}", child
    return dense
