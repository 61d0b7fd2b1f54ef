"""Decide which parts of the flow through a network are its layers: by a rule, or by the names that a user gives.

The rule finds what the literature counts as layers:

1. A *block* is a module that contains whole branching parts of the flow (see `flow`), at least one of them not inside a
   smaller module, and whose class keeps the shape at least once in this network. All modules of such a class are
   layers, the outermost first. In a Hugging Face model the blocks are the layers that its config counts, if the flow
   passes through them.
2. Where a module calls blocks by name, not as items of a list, the blocks are its parts. This module is then the block,
   if it is not the only module of its class and all modules of the class keep the shape.
3. A network without blocks consists of *units*: a module with a weight (convolution or linear layer, whichever is more
   frequent) and the siblings that follow it, up to the next such module, as long as they keep the shape; or the module
   that contains exactly these modules.
4. If blocks that change the shape hold most of the parameters, the network has no removable layers (DenseNet).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

from sglp.discovery.flow import Call
from sglp.errors import LayerError
from sglp.surgery.prune import runs_in_a_row

Group = list[Call]


def by_rule(network: nn.Module, calls: list[Call], stacked: set[str]) -> list[Group]:
    """Find the layers by the rule: blocks, or the modules of units, in order of execution.

    Args:
        network: the network.
        calls: the calls of its modules, from `trace`.
        stacked: paths of the layers that a Hugging Face config counts; empty for other networks.

    Raises:
        LayerError: the network has no layers, or none that can be removed.
    """
    name = type(network).__name__
    smallest = _smallest(calls, stacked)
    blocks = _of_classes(calls, {type(e.module) for e in _owners(calls, smallest) if _keeps_shape(e)})
    if blocks:
        return [[entry] for entry in blocks]
    block_parameters = {p for entry in smallest for p in entry.module.parameters()}
    if 2 * sum(p.numel() for p in block_parameters) > sum(p.numel() for p in network.parameters()):
        entry = smallest[0]
        raise LayerError(
            f"{name} has no removable layers: its blocks change the shape, for example {entry.path} "
            f"({type(entry.module).__name__}) from {shape_text(entry.input_shape)} to {shape_text(entry.output_shape)}"
        )
    units = _units(calls)
    if not units:
        repeated = [entry for entry in calls if entry.times > 1 and _holds_weight(entry.module)]
        reason = f"{repeated[0].path} runs {repeated[0].times} times" if repeated else "it has no consecutive blocks"
        raise LayerError(f"no layers can be distinguished in {name}: {reason}")
    return units


def by_name(network: nn.Module, calls: list[Call], patterns: str | Sequence[str]) -> list[Group]:
    """Find the layers that patterns name, in order of execution; see `find_layers`.

    Raises:
        LayerError: a pattern matches no module, a module that does not run, or a module inside another layer; or two
            layers do not run one after the other.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    name = type(network).__name__
    paths = [path for path, _ in network.named_modules() if path]
    order = {entry.path: i for i, entry in enumerate(calls)}
    chosen: dict[str, str] = {}  # the pattern that matched each path
    groups = []
    for pattern in patterns:
        matches = _matches(pattern, paths)
        if not matches:
            raise LayerError(f"the pattern {pattern!r} matches no module of {name}, which has {_first_few(paths)}")
        for siblings in matches:
            for path in siblings:
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
    return groups


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


def _keeps_shape(entry: Call) -> bool:
    return entry.input_shape == entry.output_shape


def _smallest(calls: list[Call], stacked: set[str]) -> list[Call]:
    """Return the layers that a config counts, or the smallest modules that contain branching parts of the flow."""
    branching = {c.path: c for c in calls if c.straight_through and c.branches and c.path}
    if counted := [entry for path, entry in branching.items() if path in stacked]:
        return counted
    # How many of a module's branches are inside smaller modules. BERT's second residual connection is inside none.
    inside: Counter[Call | None] = Counter()
    for entry in branching.values():
        outer = entry.outer  # the calling module, not the path's parent: a module can have several paths
        while outer and outer.path not in branching:
            outer = outer.outer
        inside[outer] += entry.branches
    # A norm that is written out has branches too, but no matrix.
    return [e for e in branching.values() if e.branches > inside[e] and _holds_weight(e.module)]


def _owners(calls: list[Call], parts: list[Call]) -> list[Call]:
    """Return, for each part of a block, the module that calls it by name and keeps the shape, or the part itself."""
    by_path = {entry.path: entry for entry in calls}
    keeps_shape: dict[type, list[bool]] = {}
    for entry in calls:
        keeps_shape.setdefault(type(entry.module), []).append(entry.straight_through and _keeps_shape(entry))
    owners = []
    for entry in parts:
        outer = by_path.get(entry.path.rpartition(".")[0])
        owner = entry
        if outer and outer.path and not runs_in_a_row(outer.module):
            same_class = keeps_shape[type(outer.module)]
            if len(same_class) > 1 and all(same_class):
                owner = outer
        owners.append(owner)
    return owners


def _of_classes(calls: list[Call], classes: set[type]) -> list[Call]:
    """Return the outermost modules of some classes."""
    blocks: list[Call] = []
    inside: set[nn.Module] = set()
    for entry in calls:
        if type(entry.module) in classes and entry.straight_through and entry.module not in inside:
            blocks.append(entry)
            inside.update(entry.module.modules())
    return blocks


def _units(calls: list[Call]) -> list[Group]:
    leaves = [entry for entry in calls if entry.straight_through and not any(entry.module.children())]
    weighted = Counter(type(entry.module) for entry in leaves if _has_weight(entry.module))
    if not weighted:
        return []
    most_frequent = weighted.most_common(1)[0][0]
    units: list[Group] = []
    is_open = False
    for entry in leaves:
        if type(entry.module) is most_frequent:
            units.append([entry])
            is_open = True
        elif is_open and not _has_weight(entry.module):
            is_open = entry.input_shape == entry.output_shape == units[-1][-1].output_shape
            is_open = is_open and _siblings(entry, units[-1][0])
            if is_open:
                units[-1].append(entry)
        else:
            is_open = False
    by_path = {entry.path: entry for entry in calls}
    return [_holder(unit, by_path) for unit in units]


def _holder(unit: Group, by_path: dict[str, Call]) -> Group:
    """Return the module that contains exactly a unit, or the unit if there is none.

    The module may use attributes of its parts, such as a stride to pad by, so it is kept or removed as a whole.
    """
    holder = by_path.get(unit[0].path.rpartition(".")[0])
    if not (holder and holder.path and holder.straight_through):
        return unit
    return [holder] if {entry.module for entry in unit} == set(holder.module.children()) else unit


def _has_weight(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _holds_weight(module: nn.Module) -> bool:
    return any(_has_weight(child) for child in module.modules())


def _siblings(a: Call, b: Call) -> bool:
    return a.path.rpartition(".")[0] == b.path.rpartition(".")[0]
