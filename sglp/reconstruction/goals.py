"""Which kept layers are refitted, in which order, and to which activation of the dense network."""

from collections.abc import Container, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from sglp.choices import Scope
from sglp.errors import PlanError
from sglp.layer import branch_ends, module_paths
from sglp.observing import observe_after
from sglp.plan import Plan
from sglp.running import first_tensor, run_hooked
from sglp.surgery.prune import PassThrough


class Goal(NamedTuple):
    """A kept layer to refit.

    Attributes:
        name: of the layer in the dense network, with the marks of its branches.
        modules: of the layer in the pruned network, in the order in which they run.
        target: name of the dense layer after which the activation is the target.
    """

    name: str
    modules: list[nn.Module]
    target: str

    @property
    def branch_ends(self) -> tuple[int, ...]:
        """Which modules end a branch; see `run_layer`."""
        return branch_ends(self.name)


def shapes_of(dense: nn.Module, plan: Plan, inputs: Any) -> dict[str, torch.Size]:
    """Return the shape of the output of each of a plan's layers for one sample, in the order in which they run."""
    shapes: dict[str, torch.Size] = {}
    handles = [
        handle
        for name in (*plan.kept, *plan.removed)
        for handle in observe_after(dense, name, partial(_note_shape, shapes, name))
    ]
    run_hooked(dense, inputs, handles)
    return shapes


def _note_shape(shapes: dict[str, torch.Size], name: str, output: Any) -> None:
    shapes[name] = first_tensor(output).shape


def goals_of(
    shapes: Mapping[str, torch.Size],
    counterparts: dict[str, nn.Module],
    plan: Plan,
    scope: Scope,
    apart: Container[str] = (),
) -> list[Goal]:
    """List the kept layers from the first gap on, or with the scope "gaps" those right before gaps.

    The target is the dense activation after the last of the removed layers that directly follow, or after the layer
    itself if there are none. Where something between the layers changes the shape, such as a pooling, the target is the
    last activation of the layer's own shape. A gap before the first kept layer has no layer to refit: the next one gets
    its own target.

    Args:
        shapes: from `shapes_of`.
        counterparts: from `counterparts_of`.
        plan: the plan.
        scope: see `reconstruct`.
        apart: names of layers that do not follow the layer before them, from `beside`.
    """
    order = list(shapes)
    removed = set(plan.removed)
    gap = next((i for i, name in enumerate(order) if name in removed), len(order))
    goals = []
    for i, name in enumerate(order):
        if name in removed:
            continue
        last = i
        while last + 1 < len(order) and order[last + 1] in removed and order[last + 1] not in apart:
            last += 1
        if last == i and (i < gap or scope == "gaps"):
            continue
        last = max(j for j in range(i, last + 1) if shapes[order[j]] == shapes[name])
        goals.append(Goal(name, [counterparts[path] for path in module_paths(name)], order[last]))
    return goals


def counterparts_of(dense: nn.Module, pruned: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """Map the paths of kept modules in the dense network to the modules of the pruned network.

    Surgery keeps the order of modules: it renumbers lists, and replaces modules that are called by name by identities.

    Raises:
        PlanError: the pruned network is not what the plan makes of the dense one.
    """
    kept = {
        path: module
        for path, module in dense.named_modules()
        if not isinstance(module, PassThrough)
        and not any(path == removed or path.startswith(f"{removed}.") for removed in plan.removed_modules)
    }
    counterparts = [module for module in pruned.modules() if not isinstance(module, PassThrough)]
    if [_kind(module) for module in kept.values()] != [_kind(module) for module in counterparts]:
        raise PlanError(f"this {type(pruned).__name__} is not what the plan makes of the dense network: prune it anew")
    return dict(zip(kept, counterparts, strict=True))


def _kind(module: nn.Module) -> tuple:
    """Return the name of a module's class and the shapes of its own parameters.

    Code that comes with a model is imported once for each folder that it is loaded from, so that classes differ.
    """
    return type(module).__qualname__, [parameter.shape for parameter in module.parameters(recurse=False)]
