"""Decide which parts of the flow through a network are its layers: by a rule, or by the names that a user gives.

The rule finds what the literature counts as layers:

1. A *block* is a module that contains whole branching parts of the flow (see `flow`), at least one of them not inside a
   smaller module, and whose class keeps the shape at least once in this network. All modules of such a class are
   layers, the outermost first. Blocks that the whole flow of the network passes come first; those that run beside a
   long skip, in several streams, with conditions or behind one of several outputs are found among what is left. A
   module that is the only one of its class, and contains several blocks, is none: it is a network in a wrapper. In a
   Hugging Face model the blocks are the layers that its config counts.
2. Where a module calls blocks by name, not as items of a list, the blocks are its parts. This module is then the block,
   if it is not the only module of its class and all modules of the class keep the shape.
3. A network without blocks consists of *units*: a module with a weight (convolution or linear layer, whichever is more
   frequent) and the siblings that follow it, up to the next such module, as long as they keep the shape; or the module
   that contains exactly these modules.
4. Where a parent adds the outputs of modules to a residual stream itself, as in x = x + block(x), each of these modules
   is a *branch*, and the branches of one item of a list are one layer (see `branches`). Branches inside blocks are not.
5. If blocks that change the shape hold most of the parameters, the network has no removable layers (DenseNet).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

from sglp.discovery.blocks import all_blocks, holds_weight, passed_by_all, smallest
from sglp.discovery.branches import Branch, branch_of, branches_in_a_row
from sglp.discovery.flow import Call, Flow
from sglp.discovery.units import Group, units_of
from sglp.discovery.watchable import flattened_text, is_flattened, is_quantized, reason_without_flow
from sglp.errors import LayerError
from sglp.layer import module_paths


def by_rule(network: nn.Module, flow: Flow, stacked: set[str]) -> list[Group]:
    """Find the layers by the rule: blocks, branches, or the modules of units, in order of execution.

    Args:
        network: the network.
        flow: the flow through its modules, from `trace`.
        stacked: paths of the layers that a Hugging Face config counts; empty for other networks.

    Raises:
        LayerError: the network has no layers, or none that can be removed.
    """
    calls = flow.calls
    name = type(network).__name__
    blocks = all_blocks(calls, stacked)
    branches = [] if stacked else branches_in_a_row(network, flow, blocks)
    groups = _with_branches(blocks, branches)
    if groups:
        order = {entry: i for i, entry in enumerate(calls)}
        return sorted(groups, key=lambda group: order[group[0]])
    parts = smallest(calls, stacked, passed_by_all)
    block_parameters = {p for entry in parts for p in entry.module.parameters()}
    if 2 * sum(p.numel() for p in block_parameters) > sum(p.numel() for p in network.parameters()):
        entry = parts[0]
        raise LayerError(
            f"{name} has no removable layers: its blocks change the shape, for example {entry.path} "
            f"({type(entry.module).__name__}) from {shape_text(entry.input_shape)} to {shape_text(entry.output_shape)}"
        )
    units = units_of(calls)
    if not units and any(is_quantized(module) for module in network.modules()):
        raise LayerError(f"no layers can be found in {name}: {reason_without_flow(network)}")
    if not units:
        repeated = [entry for entry in calls if entry.times > 1 and holds_weight(entry.module)]
        reason = f"{repeated[0].path} runs {repeated[0].times} times" if repeated else "it has no consecutive blocks"
        raise LayerError(f"no layers can be distinguished in {name}: {reason}")
    return units


def _with_branches(blocks: list[Call], branches: list[list[Branch]]) -> list[Group]:
    """Return the blocks and the layers that consist of branches, which take the place of blocks around or in them."""
    groups: list[Group] = []
    inside: set[nn.Module] = set()
    for layer in branches:
        for branch in layer:
            branch.calls[-1].added = True
            inside.update(module for entry in branch.calls for module in entry.module.modules())
        groups.append([entry for branch in layer for entry in branch.calls])
    return [*groups, *([entry] for entry in blocks if not inside.intersection(entry.module.modules()))]


def by_name(network: nn.Module, flow: Flow, patterns: str | Sequence[str]) -> list[Group]:
    """Find the layers that patterns name, in order of execution; see `find_layers`.

    Raises:
        LayerError: a pattern matches no module, a module that does not run, or a module inside another layer; or two
            layers do not run one after the other.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    name = type(network).__name__
    calls = flow.calls
    paths = [path for path, _ in network.named_modules() if path]
    order = {entry.path: i for i, entry in enumerate(calls)}
    chosen: dict[str, str] = {}  # the pattern that matched each path
    groups = []
    for pattern in patterns:
        matches = _matches("+".join(module_paths(pattern)), paths)
        if not matches:
            raise LayerError(f"the pattern {pattern!r} matches no module of {name}, which has {_first_few(paths)}")
        for siblings in matches:
            for path in siblings:
                if path not in order and is_flattened(network):
                    raise LayerError(flattened_text(network))
                if path not in order:
                    raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which does not run")
                if path in chosen:
                    raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which is already a layer")
                chosen[path] = pattern
            groups.append([calls[i] for i in sorted(order[path] for path in siblings)])
    for path, pattern in chosen.items():
        outer = next((outer for outer in _parents(path) if outer in chosen), None)
        if outer:
            raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which is inside the layer {outer}")
    if not groups:
        raise LayerError(f"paths is empty: pass module paths of {name}, such as {_first_few(paths)}")
    groups.sort(key=lambda group: order[group[0].path])
    for first, second in pairwise(groups):
        if order[first[-1].path] > order[second[0].path]:
            both = " and ".join("+".join(entry.path for entry in group) for group in (first, second))
            raise LayerError(f"the layers {both} of {name} overlap: one must finish before the next one starts")
    for group in groups:
        _mark_branches(group, flow)
    return groups


def _mark_branches(group: Group, flow: Flow) -> None:
    """Mark the last calls of the branches that a group consists of."""
    start = 0
    for i, entry in enumerate(group):
        if branch_of(group[start : i + 1], flow):
            entry.added = True
            start = i + 1


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape, such as 16x8x8."""
    return "x".join(map(str, shape))


def _matches(pattern: str, paths: list[str]) -> list[list[str]]:
    if "+" in pattern:
        parts = pattern.split("+")
        are_siblings = len({path.rpartition(".")[0] for path in parts}) == 1
        return [parts] if are_siblings and set(parts) <= set(paths) else []
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    return [[path] for path in paths if expression.fullmatch(path)]


def _first_few(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def _parents(path: str) -> Iterator[str]:
    """Yield the paths of the modules that contain a module, from the nearest one outwards."""
    while path := path.rpartition(".")[0]:
        yield path
