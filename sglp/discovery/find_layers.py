"""Finds a network's layers by running it, at the granularity of the literature, for any architecture.

What counts as a layer is said in `granularity`. Here is what a layer costs and whether it can be left out: it can where
it maps a tensor to one of the same shape, and where what runs after it is content with what it was given.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from sglp import cost
from sglp.discovery.flow import Call, trace
from sglp.discovery.granularity import Group, by_name, by_rule, text
from sglp.errors import LayerError, PlanError
from sglp.hugging_face.networks import is_pretrained, stack_of, stacked_layers, ties_between_layers
from sglp.layer import STEM, Layer
from sglp.surgery.equivalence import unremovable


def find_layers(model: nn.Module, example, paths: str | Sequence[str] | None = None) -> list[Layer]:
    """The layers of a network in order of execution, found by one forward pass.

    What comes before the first block is the first layer (the stem), unless the input is token ids, whose embedding is
    no layer. What comes after the last one (the head) is none.

    Args:
        model: any module; left as it was.
        example: a tensor [samples, ...], or a dict of keyword arguments.
        paths: the layers instead of those that are found by the rule: one or several paths of modules, in which "*"
            stands for one part of a path ("layers.*", "features.*.block"), or for some of its letters ("block4-*").
            "conv1+bn1" is a run of siblings. Exactly these are the layers then, without a stem.

    Raises:
        LayerError: no layers can be told apart, or they need each other; a path is not there, does not run, or is
            inside of another one; the network is compiled, or this runs in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise LayerError(
            "torch.inference_mode() turns autograd off, by which layers are found: call this outside of it"
        )
    if any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules()):
        raise LayerError(
            f"this {type(model).__name__} is compiled, and can't be watched so: give the module as it was before, and "
            "compile what is left of it"
        )
    ties = ties_between_layers(model) if is_pretrained(model) else ""
    if ties:
        raise LayerError(ties)
    calls = trace(model, example)
    stem: Group = []
    if paths is None:
        groups = by_rule(model, calls, stacked_layers(model) if is_pretrained(model) else set())
        stem = _stem(calls, groups[0])
    else:
        groups = by_name(model, calls, paths)
    macs = cost.macs_by_module(model, example)
    layers = [_layer(group, _reason(model, group), macs) for group in groups]
    if not _counted(model, layers):
        layers = _tried(model, layers, {entry.module for entry in calls}, example)
    return [_layer(stem, STEM, macs), *layers] if stem else layers


def _layer(calls: Group, reason: str, macs: dict[str, int]) -> Layer:
    parameters = {p for entry in calls for p in entry.module.parameters()}
    return Layer(
        name="+".join(entry.path for entry in calls),
        removable=not reason,
        reason=reason,
        parameters=sum(p.numel() for p in parameters),
        macs=sum(macs.get(entry.path, 0) for entry in calls),
    )


def _counted(model: nn.Module, layers: list[Layer]) -> bool:
    """Whether a config counts the layers: surgery knows then which numbers have to follow, or refuses it."""
    paths = [path for layer in layers if layer.removable for path in layer.modules]
    if not is_pretrained(model) or not paths:
        return False
    try:
        return stack_of(model, paths[:1]) is not None
    except PlanError:
        return True


def _tried(model: nn.Module, layers: list[Layer], ran: set[nn.Module], example) -> list[Layer]:
    """The layers, of which those that their parents can't be without are not removable."""
    why = unremovable(model, layers, ran, example)
    return [replace(layer, removable=False, reason=why[i]) if i in why else layer for i, layer in enumerate(layers)]


def _reason(model: nn.Module, group: Group) -> str:
    """Why a layer can't be left out, or ""."""
    for entry in group:
        if entry.times > 1:
            return f"runs {entry.times} times"
        if None in (entry.start, entry.end):
            return "the flow does not pass through it alone"
        # The items of a list are called one by one, by somebody who takes apart what they return.
        listed = isinstance(model.get_submodule(entry.path.rpartition(".")[0]), nn.ModuleList)
        if entry.given != entry.returned and (not listed or entry.returned == "a dict"):
            return f"is given {entry.given} and returns {entry.returned}"
    before, after = group[0].input_shape, group[-1].output_shape
    if before != after:
        return f"changes the shape from {text(before)} to {text(after)}"
    # What runs in between stays, and must be content with the shape that it is then given.
    if any(a.end != b.start and not a.output_shape == b.input_shape == before for a, b in pairwise(group)):
        return "its modules do not follow each other"
    return ""


def _stem(calls: list[Call], first: Group) -> Group:
    """The outermost modules that ran before the first layer, if they have parameters and the input is no token ids."""
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
