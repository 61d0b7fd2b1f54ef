"""Find the blocks of a network: modules with branches inside, such as residual blocks and transformer blocks."""

from collections import Counter
from collections.abc import Callable, Collection

from torch import nn

from sglp.discovery.flow import Call
from sglp.discovery.watchable import is_quantized
from sglp.surgery.prune import runs_in_a_row

Usable = Callable[[Call], bool]


def all_blocks(calls: list[Call], stacked: set[str]) -> list[Call]:
    """Find the blocks of a network, in order of execution; see `granularity`.

    The blocks that the whole flow of the network passes decide about granularity. Those beside a long skip, in one of
    several streams or behind one of several outputs are added.

    Args:
        calls: the calls of the network's modules.
        stacked: paths of the layers that a Hugging Face config counts; empty for other networks.
    """
    main = blocks_among(calls, stacked, passed_by_all)
    others = blocks_among(calls, stacked, runs_once)
    if stacked:
        counted = [entry for entry in main if entry.path in stacked]
        return counted or [entry for entry in others if entry.path in stacked] or main
    alone = _only_of_class(calls)
    main = [entry for entry in main if entry not in alone or len(_inside(entry, others)) < 2]
    classes = {type(entry.module) for entry in main}
    same = _outermost([entry for entry in calls if type(entry.module) in classes and entry.runs_once])
    blocks = _outermost([*main, *same, *others])
    order = {entry: i for i, entry in enumerate(calls)}
    return sorted(blocks, key=lambda entry: order[entry])


def passed_by_all(entry: Call) -> bool:
    """Whether the whole flow of the network passes through a module."""
    return entry.straight_through


def runs_once(entry: Call) -> bool:
    """Whether a module runs once and does something to what it is passed."""
    return entry.runs_once


def blocks_among(calls: list[Call], stacked: set[str], usable: Usable) -> list[Call]:
    """Find the blocks among the calls that can be used."""
    parts = smallest(calls, stacked, usable)
    owners = [entry for entry in _owners(calls, parts, usable) if keeps_shape(entry)]
    # A whole network in a wrapper, such as a U-Net, is not one of its blocks.
    alone = _only_of_class(calls)
    owners = [entry for entry in owners if entry not in alone or len(_inside(entry, owners)) < 2]
    classes = {type(entry.module) for entry in owners}
    blocks = [entry for entry in calls if type(entry.module) in classes and usable(entry)]
    if usable is runs_once:  # not a stage that changes the shape, or a part of a tree, around blocks
        blocks = [entry for entry in blocks if keeps_shape(entry) or not _inside(entry, owners)]
    return _outermost(blocks)


def smallest(calls: list[Call], stacked: set[str], usable: Usable) -> list[Call]:
    """Return the layers that a config counts, or the smallest modules that contain branching parts of the flow."""
    branching = {c.path: c for c in calls if usable(c) and c.branches and c.path}
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
    return [e for e in branching.values() if e.branches > inside[e] and holds_weight(e.module)]


def keeps_shape(entry: Call) -> bool:
    """Whether the first output has the shape of the input that can take its place."""
    is_alike = not entry.arguments.items or entry.input_kind == entry.output_kind
    return is_alike and entry.input_shape == entry.output_shape


def has_weight(module: nn.Module) -> bool:
    """Whether a module has a matrix of its own."""
    return any(p.ndim >= 2 for p in module.parameters(recurse=False)) or is_quantized(module)


def holds_weight(module: nn.Module) -> bool:
    """Whether a module has a matrix, itself or in a module inside it."""
    return any(has_weight(child) for child in module.modules())


def _owners(calls: list[Call], parts: list[Call], usable: Usable) -> list[Call]:
    """Return, for each part of a block, the module that calls it by name and keeps the shape, or the part itself."""
    by_path = {entry.path: entry for entry in calls}
    same_class: dict[type, list[bool]] = {}
    for entry in calls:
        same_class.setdefault(type(entry.module), []).append(usable(entry) and keeps_shape(entry))
    owners = []
    for entry in parts:
        outer = by_path.get(entry.path.rpartition(".")[0])
        owner = entry
        if outer and outer.path and not runs_in_a_row(outer.module):
            keeping = same_class[type(outer.module)]
            if len(keeping) > 1 and all(keeping):
                owner = outer
        owners.append(owner)
    return owners


def _only_of_class(calls: list[Call]) -> set[Call]:
    number = Counter(type(entry.module) for entry in calls)
    return {entry for entry in calls if number[type(entry.module)] == 1}


def _inside(entry: Call, others: Collection[Call]) -> list[Call]:
    """Return the most frequent class of other calls inside a module."""
    modules = set(entry.module.modules())
    inside = [other for other in others if other is not entry and other.module in modules]
    kinds = Counter(type(other.module) for other in inside).most_common(1)
    return [other for other in inside if type(other.module) is kinds[0][0]]


def _outermost(entries: Collection[Call]) -> list[Call]:
    """Return the calls of modules that are not inside one before them, and do not contain it."""
    blocks: dict[nn.Module, Call] = {}
    inside: set[nn.Module] = set()
    for entry in entries:
        modules = set(entry.module.modules())
        if entry.module not in inside and not modules.intersection(blocks):  # blocks can share a module
            blocks[entry.module] = entry
            inside |= modules
    return list(blocks.values())
