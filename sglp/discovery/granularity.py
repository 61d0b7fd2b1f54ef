"""Which parts of the flow through a network are its layers: by a rule, or by the names that a user gives.

The rule, which finds what the literature counts as layers:

1. A *block* is a module that holds whole branching parts of the flow (see `flow`), of which one at least lies in no
   smaller module, and whose kind (its class) keeps the shape at least once in this network. All modules of such a kind
   are layers, taken from the outside in. In a network of transformers the blocks are what its config counts as layers,
   if the flow passes through them.
2. Where a module calls blocks by name, and not as items of a list, they are parts of it: it is the block, if it is not
   the only one of its kind and this kind keeps the shape everywhere.
3. A network without blocks consists of *units*: a module with a weight (convolution or linear layer, whichever is more
   frequent) and its siblings after it, up to the next one, as long as they keep the shape; or the module that holds
   just these.
4. If blocks that change the shape hold most of the parameters, there is nothing to find (DenseNet).
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
    """The layers by the rule, each a block or the modules of a unit, in order of execution.

    Raises:
        LayerError: there are none.
    """
    name = type(network).__name__
    smallest = _smallest(calls, stacked)
    blocks = _of_kinds(calls, {type(e.module) for e in _whole(network, calls, smallest) if _keeps_shape(e)})
    if blocks:
        return [[entry] for entry in blocks]
    stuck = {p for entry in smallest for p in entry.module.parameters()}
    if 2 * sum(p.numel() for p in stuck) > sum(p.numel() for p in network.parameters()):
        entry = smallest[0]
        raise LayerError(
            f"{name} has no layers that can be left out: its blocks change the shape, as {entry.path} "
            f"({type(entry.module).__name__}) does from {text(entry.input_shape)} to {text(entry.output_shape)}"
        )
    units = _units(calls)
    if not units:
        again = [entry for entry in calls if entry.times > 1 and _holds_weight(entry.module)]
        why = f"{again[0].path} runs {again[0].times} times" if again else "it has no blocks that run in a row"
        raise LayerError(f"no layers can be told apart in {name}: {why}")
    return units


def by_name(network: nn.Module, calls: list[Call], patterns: str | Sequence[str]) -> list[Group]:
    """The layers that patterns name, in order of execution; see `find_layers`.

    Raises:
        LayerError: a pattern matches nothing, what does not run, or modules inside of each other; layers do not run
            one after the other.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    name, known = type(network).__name__, [path for path, _ in network.named_modules() if path]
    order, chosen, groups = {entry.path: i for i, entry in enumerate(calls)}, {}, []
    for pattern in patterns:
        found = _matches(pattern, known)
        if not found:
            raise LayerError(f"the pattern {pattern!r} matches no module of {name}, which has {_some(known)}")
        for run in found:
            for path in run:
                if path not in order:
                    raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which does not run")
                if path in chosen:
                    raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which is a layer already")
                chosen[path] = pattern
            groups.append([calls[i] for i in sorted(order[path] for path in run)])
    for path, pattern in chosen.items():
        outer = next((outer for outer in _around(path) if outer in chosen), None)
        if outer:
            raise LayerError(f"the pattern {pattern!r} matches {path} of {name}, which is inside of the layer {outer}")
    if not groups:
        raise LayerError(f"no pattern of layers is given: write paths of modules of {name}, as {_some(known)}")
    groups.sort(key=lambda group: order[group[0].path])
    for one, following in pairwise(groups):
        if order[one[-1].path] > order[following[0].path]:
            both = " and ".join("+".join(entry.path for entry in group) for group in (one, following))
            raise LayerError(
                f"the layers {both} of {name} run into each other: one must have run before the next one begins"
            )
    return groups


def text(shape: tuple[int, ...]) -> str:
    """A shape as it is written: 16x8x8."""
    return "x".join(map(str, shape))


def _matches(pattern: str, known: list[str]) -> list[list[str]]:
    if "+" in pattern:
        run = pattern.split("+")
        siblings = len({path.rpartition(".")[0] for path in run}) == 1
        return [run] if siblings and set(run) <= set(known) else []
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    return [[path] for path in known if expression.fullmatch(path)]


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def _around(path: str) -> Iterator[str]:
    """The paths of the modules that a module is inside of, from the nearest one outwards."""
    while path := path.rpartition(".")[0]:
        yield path


def _keeps_shape(entry: Call) -> bool:
    return entry.input_shape == entry.output_shape


def _smallest(calls: list[Call], stacked: set[str]) -> list[Call]:
    branching = {c.path: c for c in calls if c.straight_through and c.branches and c.path}
    if listed := [entry for path, entry in branching.items() if path in stacked]:
        return listed
    inside = Counter()  # how much of a module's branches lies in smaller ones (BERT's second residual lies in none)
    for entry in branching.values():
        outer = entry.outer  # and not by its path: a module may have several
        while outer and outer.path not in branching:
            outer = outer.outer
        inside[outer] += entry.branches
    # A norm that is written out branches too, but holds no matrix.
    return [e for e in branching.values() if e.branches > inside[e] and _holds_weight(e.module)]


def _whole(network: nn.Module, calls: list[Call], parts: list[Call]) -> list[Call]:
    """The modules that the parts of blocks belong to."""
    by_path, kinds = {entry.path: entry for entry in calls}, {}
    for entry in calls:
        kinds.setdefault(type(entry.module), []).append(entry.straight_through and _keeps_shape(entry))
    whole = []
    for entry in parts:
        outer = by_path.get(entry.path.rpartition(".")[0])
        belongs = outer and outer.path and not runs_in_a_row(outer.module)
        keeps = kinds[type(outer.module)] if belongs else []
        whole.append(outer if len(keeps) > 1 and all(keeps) else entry)
    return whole


def _of_kinds(calls: list[Call], kinds: set[type]) -> list[Call]:
    blocks: list[Call] = []
    inside: set[nn.Module] = set()
    for entry in calls:
        if type(entry.module) in kinds and entry.straight_through and entry.module not in inside:
            blocks.append(entry)
            inside.update(entry.module.modules())
    return blocks


def _units(calls: list[Call]) -> list[Group]:
    leaves = [entry for entry in calls if entry.straight_through and not any(entry.module.children())]
    weighted = Counter(type(entry.module) for entry in leaves if _has_weight(entry.module))
    if not weighted:
        return []
    kind = weighted.most_common(1)[0][0]
    units: list[Group] = []
    open_ = False
    for entry in leaves:
        if type(entry.module) is kind:
            units.append([entry])
            open_ = True
        elif open_ and not _has_weight(entry.module):
            open_ = entry.input_shape == entry.output_shape == units[-1][-1].output_shape
            open_ = open_ and _siblings(entry, units[-1][0])
            if open_:
                units[-1].append(entry)
        else:
            open_ = False
    by_path = {entry.path: entry for entry in calls}
    return [_holder(unit, by_path) for unit in units]


def _holder(unit: Group, by_path: dict[str, Call]) -> Group:
    """The module that a unit is all of, which may need what its parts are (a stride, to pad by); or the unit."""
    holder = by_path.get(unit[0].path.rpartition(".")[0])
    whole = holder and holder.path and holder.straight_through
    if not whole or {entry.module for entry in unit} != set(holder.module.children()):
        return unit
    return [holder]


def _has_weight(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _holds_weight(module: nn.Module) -> bool:
    return any(_has_weight(child) for child in module.modules())


def _siblings(a: Call, b: Call) -> bool:
    return a.path.rpartition(".")[0] == b.path.rpartition(".")[0]
