"""Takes layers out of a network; what is left is a smaller ordinary module."""

import copy
from collections.abc import Iterable

from torch import nn

from sglp.architecture import architecture_of, pruned_architecture, remember, runs_in_a_row
from sglp.errors import PlanError, first_line
from sglp.flow import handed_on
from sglp.hugging_face import is_pretrained, leave_out, stack_of
from sglp.plan import Plan


class PassOn(nn.Identity):
    """An identity that hands on the first of its arguments, whatever further ones a layer was given in its place."""

    def forward(self, *args, **kwargs):
        """What the layer was given."""
        return handed_on(args, kwargs)


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
        missing = [path for path in name.split("+") if path not in known]
        if missing:
            raise PlanError(f"the plan names the layer {name}, but {type(model).__name__} has no module {missing[0]}")
    removed = [path for name in plan.removed for path in name.split("+")]
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
                setattr(parent, name, PassOn())


def _keep(parent: nn.Module, children: dict[str, nn.Module]) -> None:
    """Keep only these children; numbers are made consecutive again, other names stay."""
    numbered = all(name.isdigit() for name in parent._modules)
    parent._modules.clear()
    for i, (name, module) in enumerate(children.items()):
        parent.register_module(str(i) if numbered else name, module)
