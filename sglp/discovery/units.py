"""Find the units of a network without blocks: modules with a weight, and what follows them."""

from collections import Counter

from torch import nn

from sglp.discovery.blocks import has_weight
from sglp.discovery.flow import Call

Group = list[Call]


def units_of(calls: list[Call]) -> list[Group]:
    """Find the units, in order of execution; see `granularity`."""
    weights = {entry.module for entry in calls if has_weight(entry.module)}
    leaves = [entry for entry in calls if _is_straight(entry, weights) and not any(entry.module.children())]
    weighted = Counter(type(entry.module) for entry in leaves if has_weight(entry.module))
    if not weighted:
        return []
    most_frequent = weighted.most_common(1)[0][0]
    units: list[Group] = []
    is_open = False
    for entry in leaves:
        if type(entry.module) is most_frequent:
            units.append([entry])
            is_open = True
        elif is_open and not has_weight(entry.module):
            is_open = entry.input_shape == entry.output_shape == units[-1][-1].output_shape
            is_open = is_open and _siblings(entry, units[-1][0])
            if is_open:
                units[-1].append(entry)
        else:
            is_open = False
    by_path = {entry.path: entry for entry in calls}
    return [_holder(unit, by_path) for unit in units]


def _is_straight(entry: Call, weights: set[nn.Module]) -> bool:
    """Whether a module runs once, and nothing runs beside it in the modules around it, except beside most weights."""
    if entry.straight_through or not entry.runs_once or entry.edge is None:
        return entry.straight_through
    outer = entry.outer
    while outer:
        holds_most = 2 * len(weights.intersection(outer.module.modules())) > len(weights)
        if not holds_most and not (entry.edge[0] in outer.cuts and outer.cuts.issuperset(entry.sources)):
            return False
        outer = outer.outer
    return True


def _holder(unit: Group, by_path: dict[str, Call]) -> Group:
    """Return the module that contains exactly a unit, or the unit if there is none.

    The module may use attributes of its parts, such as a stride to pad by, so it is kept or removed as a whole.
    """
    holder = by_path.get(unit[0].path.rpartition(".")[0])
    if not (holder and holder.path and holder.runs_once):
        return unit
    return [holder] if {entry.module for entry in unit} == set(holder.module.children()) else unit


def _siblings(a: Call, b: Call) -> bool:
    return a.path.rpartition(".")[0] == b.path.rpartition(".")[0]
