"""Find a network's layers by running it, at the granularity of the literature, for any architecture.

`granularity` defines what counts as a layer. This module adds what each layer costs and whether it can be removed: its
input and output must have the same shape, and the modules after it must accept its input.
"""

from collections.abc import Container, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from sglp import cost
from sglp.cutting import Inputs
from sglp.discovery.branches import stream_of
from sglp.discovery.flow import Call, trace
from sglp.discovery.granularity import by_name, by_rule, shape_text
from sglp.discovery.units import Group
from sglp.discovery.watchable import check_watchable, flattened_text, is_flattened
from sglp.errors import LayerError, PlanError
from sglp.hugging_face.networks import is_pretrained, stack_of, stacked_layers, ties_between_layers
from sglp.hugging_face.wrapping import inner_models, inside, refusal
from sglp.layer import BRANCH, STEM, Layer
from sglp.surgery.equivalence import unremovable
from sglp.surgery.pretrained_trials import unremovable_anywhere


def find_layers(model: nn.Module, example: Inputs, paths: str | Sequence[str] | None = None) -> list[Layer]:
    """Find the layers of a network, in order of execution, with one forward pass.

    Everything before the first block is the first layer (the stem), unless the input is token ids: an embedding is not
    a layer. What follows the last block (the head) is not a layer either.

    Args:
        model: any module; left unchanged.
        example: a tensor [samples, ...], or a dict of keyword arguments.
        paths: the layers to use instead of those that the rule finds: one or several module paths, in which "*" matches
            one part of a path ("layers.*", "features.*.block") or some of its characters ("block4-*"). "conv1+bn1" is a
            group of consecutive siblings. These are then the only layers; there is no stem.

    Raises:
        LayerError: no layers can be distinguished, or they depend on each other; a path does not exist, does not run,
            or is inside another layer; the network is compiled, or inference mode is on.
    """
    check_watchable(model)
    if reason := refusal(model):
        raise LayerError(reason)
    models = inner_models(model)
    ties = {path: sentence for path, inner in models.items() if (sentence := ties_between_layers(inner))}
    if ties and len(models) == 1:
        raise LayerError(*ties.values())
    if paths is None and is_flattened(model):
        raise LayerError(flattened_text(model))
    flow = trace(model, example)
    calls = flow.calls
    stem: Group = []
    if paths is None:
        stacked = {
            ".".join(filter(None, (path, layer)))
            for path, inner in models.items()
            if path not in ties
            for layer in stacked_layers(inner)
        }
        groups = by_rule(model, flow, stacked)
        _check_one_stack(model, groups)
        stem = _stem(calls, groups[0])
    else:
        groups = by_name(model, flow, paths)
    macs = cost.macs_by_module(model, example)
    layers = [_layer(group, _tie(ties, group) or _reason(model, group), macs) for group in groups]
    layers = _without_unremovable(model, layers, {entry.module for entry in calls}, example)
    return [_layer(stem, STEM, macs), *layers] if stem else layers


def _check_one_stack(model: nn.Module, groups: list[Group]) -> None:
    """Refuse a Hugging Face model with several stacks side by side, as layers of one stack only can be removed.

    Raises:
        LayerError: it has several stacks; the message has a pattern for each.
    """
    if not is_pretrained(model):
        return
    stacks: list[list[str]] = []
    for group in groups:
        try:
            stack = stack_of(model, [group[0].path])
        except PlanError:
            continue
        if stack is not None and stack not in stacks:
            stacks.append(stack)
    if len(stacks) > 1:
        patterns = " or ".join(f"paths={[f'{path}.*' for path in stack]}" for stack in stacks)
        raise LayerError(
            f"{type(model).__name__} has {len(stacks)} stacks of layers side by side, and layers can be removed from "
            f"one of them at a time: choose {patterns}"
        )


def _layer(calls: Group, reason: str, macs: dict[str, int]) -> Layer:
    parameters = {p for entry in calls for p in entry.module.parameters()}
    return Layer(
        name="+".join(entry.path + (BRANCH if entry.added else "") for entry in calls),
        removable=not reason,
        reason=reason,
        parameters=sum(p.numel() for p in parameters),
        macs=sum(macs.get(entry.path, 0) for entry in calls),
    )


def _tie(ties: dict[str, str], group: Group) -> str:
    """Return why no layer of the Hugging Face model that contains a layer can be removed, or ""."""
    return next((reason for path, reason in ties.items() if inside(path, [group[0].path])), "")


def _without_unremovable(
    model: nn.Module, layers: list[Layer], called: Container[nn.Module], example: Inputs
) -> list[Layer]:
    """Return the layers, with those that their parents depend on marked as not removable."""
    find = unremovable_anywhere if inner_models(model) else unremovable
    reasons = find(model, layers, called, example)
    return [
        replace(layer, removable=False, reason=reasons[i]) if i in reasons else layer for i, layer in enumerate(layers)
    ]


def _reason(model: nn.Module, group: Group) -> str:
    """Return why a layer can't be removed, or ""."""
    for entry in group:
        if entry.times > 1:
            return f"runs {entry.times} times"
        if not entry.has_flow:
            return "its output does not depend on its input, or the network's output does not depend on it"
        if entry.added:  # the parent adds a tensor, whatever else the module returns
            continue
        # The parent calls the items of a list one by one, and can unpack what each of them returns.
        is_list_item = isinstance(model.get_submodule(entry.path.rpartition(".")[0]), nn.ModuleList)
        if entry.input_kind != entry.output_kind and (not is_list_item or entry.output_kind == "a dict"):
            return f"takes {entry.input_kind} and returns {entry.output_kind}"
        if entry.lost and not is_pretrained(model):
            return "returns a tensor besides the first one that none of its inputs can take the place of"
    before = group[0].input_shape
    after = group[-1].output_shape
    if before != after:
        return f"changes the shape from {shape_text(before)} to {shape_text(after)}"
    # Whatever runs between the modules is kept, and must accept the shape that it then receives.
    if any(not _follows(a, b) and not a.output_shape == b.input_shape == before for a, b in pairwise(group)):
        return "its modules do not run directly one after another"
    return ""


def _follows(first: Call, second: Call) -> bool:
    """Check whether a module is passed what another one returned."""
    return first.edge is not None and first.edge == stream_of(second)


def _stem(calls: list[Call], first: Group) -> Group:
    """Return the outermost modules that ran before the first layer, or [] if they have no parameters or embed ids."""
    stem: Group = []
    inside: set[nn.Module] = set()
    for entry in calls[: calls.index(first[0])]:
        modules = set(entry.module.modules())
        if first[0].module not in modules and entry.module not in inside:
            stem.append(entry)
            inside |= modules
    if any(isinstance(m, nn.Embedding) for entry in stem for m in entry.module.modules()):
        return []
    return stem if any(True for entry in stem for _ in entry.module.parameters()) else []
