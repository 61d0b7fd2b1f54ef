"""Branches that a parent adds to a residual stream: x = x + block(x), where the residual connection is in the parent.

Without such a block nothing is added, so that the stream stays x. Where the norm before a block is a module of its own,
as in x = x + block(norm(x)), the two modules are one branch.
"""

from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

from torch import nn
from torch.autograd.graph import Node

from sglp.discovery.flow import Call, Flow
from sglp.surgery.streams import Edge

LONGEST = 4  # modules of one branch that run one after another


class Branch(NamedTuple):
    """A branch of a residual stream.

    Attributes:
        calls: its modules, in the order in which they run.
        end: graph node of the sum.
    """

    calls: list[Call]
    end: Node

    @property
    def start(self) -> Edge:
        """The graph edge of the stream before the branch."""
        edge = stream_of(self.calls[0])
        assert edge is not None
        return edge


def stream_of(entry: Call) -> Edge | None:
    """Return the graph edge of the main input of a call."""
    arguments = entry.arguments
    slot = arguments.slots[arguments.main] if arguments.main is not None else None
    return slot.edge if slot else None


def branch_of(group: list[Call], flow: Flow) -> Branch | None:
    """Return the branch that modules form, or None if the parent does not add their output to their input."""
    last = group[-1]
    if last.edge is None or any(entry.times > 1 for entry in group):
        return None
    for first, second in pairwise(group):
        if first.edge is None or first.edge != stream_of(second):
            return None
    readers = flow.consumers.get(last.edge[0], [])
    if len(set(readers)) != 1 or not readers[0].name().startswith("AddBackward"):
        return None
    operands = list(readers[0].next_functions)
    if len(operands) == 2 and last.edge in operands:
        operands.remove(last.edge)
        if operands[0] == stream_of(group[0]) and group[0].input_shape == last.output_shape:
            return Branch(group, readers[0])
    return None


def branches_in_a_row(network: nn.Module, flow: Flow, blocks: Collection[Call]) -> list[list[Branch]]:
    """Find the branches that a parent adds in a row; the branches of one item of a list together are one layer.

    In a network with blocks, only the items of lists count. Branches inside blocks are parts of these blocks, unless
    the block is the only one of its class.

    Args:
        network: the network.
        flow: the flow through it.
        blocks: the blocks that the rule finds otherwise.
    """
    number = Counter(type(entry.module) for entry in flow.calls)
    around = {
        module: None if number[type(entry.module)] > 1 else entry.path
        for entry in blocks
        for module in list(entry.module.modules())[1:]
    }
    branches: list[Branch] = []
    ends: set[Node] = set()
    for i, entry in enumerate(flow.calls):
        block = around.get(entry.module, "")  # None: of several blocks of one class
        branch = _beginning_at(i, flow) if entry.path and block is not None else None
        if branch and blocks and not _is_listed(network, branch.calls[-1].path, block or ""):
            branch = None
        if branch and branch.end not in ends:  # the outermost module comes first
            ends.add(branch.end)
            branches.append(branch)
    classes = Counter(type(branch.calls[-1].module) for branch in branches)
    layers: list[tuple[str, list[Branch]]] = []
    for branch in branches:
        if classes[type(branch.calls[-1].module)] == 1:
            continue
        item = _item(network, branch.calls[-1].path)
        # The branches of an item must follow each other, as they are removed together.
        if layers and layers[-1][0] == item and layers[-1][1][-1].end is branch.start[0]:
            layers[-1][1].append(branch)
        else:
            layers.append((item, [branch]))
    alone = Counter(around.get(branches[0].calls[0].module, "") for _, branches in layers)
    return [branches for _, branches in layers if alone[around.get(branches[0].calls[0].module, "")] > 1]


def _beginning_at(index: int, flow: Flow) -> Branch | None:
    """Return the branch that begins with a call, or None; other modules may follow in the same branch."""
    group = [flow.calls[index]]
    inside = set(group[0].module.modules())
    for later in (None, *flow.calls[index + 1 :]):
        if later is not None:
            if later.module in inside:
                continue
            if later.outer is not group[0].outer or later.edge is None or stream_of(later) != group[-1].edge:
                return None
            group = [*group, later]
            inside.update(later.module.modules())
        branch = branch_of(group, flow)
        if branch or len(group) == LONGEST:
            return branch
    return None


def _item(network: nn.Module, path: str) -> str:
    """Return the path of the list item that contains a module, or the module's own path if no list does.

    An item can be a list of unlike parts, such as an attention and a feed-forward part.
    """
    parts = path.split(".")
    ends = [i for i in range(1, len(parts)) if _is_list(network.get_submodule(".".join(parts[:i])))]
    if not ends:
        return path
    end = ends[-1]
    while end - 1 in ends and not _alike(network.get_submodule(".".join(parts[:end]))):
        end -= 1
    return ".".join(parts[: end + 1])


def _is_listed(network: nn.Module, path: str, block: str) -> bool:
    """Whether a module is in an item of a list inside a block."""
    parent = _item(network, path).rpartition(".")[0]
    return f"{parent}.".startswith(f"{block}." if block else "") and _is_list(network.get_submodule(parent))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _alike(items: nn.Module) -> bool:
    """Whether the items of a list consist of the same classes."""
    return len({tuple(type(inner) for inner in item.modules()) for item in items.children()}) == 1
