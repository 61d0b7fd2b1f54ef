"""The cuts of a graph: the nodes that every path from its sources to its sinks passes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch.autograd.graph import Node


class Cuts(NamedTuple):
    """The cuts of a graph.

    Attributes:
        positions: position of each cut in the topological order.
        branches: number of operations that belong to branches: they are neither cuts nor parts of a gate.
    """

    positions: dict[Node, int]
    branches: int


def flow_between(sources: set[Node], sinks: Sequence[Node]) -> list[Node]:
    """Return the graph nodes on the paths from sources to sinks, in topological order."""
    # Depth first without recursion: a deep network's graph is deeper than Python's stack.
    reaches: dict[Node, bool] = {}
    order = []
    stack = [(node, False) for node in sinks]
    while stack:
        node, done = stack.pop()
        if done:
            later = [n for n, _ in node.next_functions if n is not None]
            reaches[node] = node in sources or any(reaches.get(n, False) for n in later)
            if reaches[node]:
                order.append(node)
        elif node not in reaches:
            reaches[node] = False
            stack.append((node, True))
            stack.extend((n, False) for n, _ in node.next_functions if n is not None and n not in reaches)
    return order


def part_between(
    order: Sequence[Node], index: Mapping[Node, int], sources: set[Node], sinks: Sequence[Node]
) -> list[Node]:
    """Return the nodes of a flow on the paths from sources to sinks that lie inside it; [] if there are none.

    Args:
        order: the flow, in topological order.
        index: positions in it.
        sources, sinks: nodes of the flow.
    """
    if not sources or not sinks:
        return []
    first, last = min(index[node] for node in sources), max(index[node] for node in sinks)
    reached = set(sources)
    inside = []
    for node in order[first : last + 1]:
        if node in sources:
            inside.append(node)
        elif any(earlier in reached for earlier, _ in node.next_functions):
            reached.add(node)
            inside.append(node)
    needed = {node for node in sinks if node in reached}
    if len(needed) < len(set(sinks)) or needed <= sources:
        return []
    part = []
    for node in reversed(inside):
        if node in needed:
            part.append(node)
            if node not in sources:
                needed.update(earlier for earlier, _ in node.next_functions if earlier in reached)
    return part[::-1]


def cuts_of(order: Sequence[Node], sources: set[Node], sinks: Sequence[Node]) -> Cuts:
    """Find the cuts of a graph whose nodes are in topological order."""
    index = {node: i for i, node in enumerate(order)}
    spans = [0] * (len(order) + 1)  # running sum: number of edges of the flow that lead past a node

    def pass_by(start: int, end: int) -> None:
        if end > start + 1:
            spans[start + 1] += 1
            spans[end] -= 1

    for node in order:
        # The sources are joined: a node between a source and its consumer is not a cut. So are the sinks.
        earlier = [-1] if node in sources else [index[n] for n, _ in node.next_functions if n in index]
        for source in earlier:
            pass_by(source, index[node])
    for node in {node for node in sinks if node in index}:
        pass_by(index[node], len(order))
    positions: dict[Node, int] = {}
    edges_past = num_in_branches = num_since_cut = 0
    for i, node in enumerate(order):
        edges_past += spans[i]
        if edges_past:
            num_since_cut += 1
            continue
        num_in_branches += 0 if node.name().startswith("Mul") else num_since_cut  # a product ends a gate
        num_since_cut = 0
        positions[node] = i
    return Cuts(positions, num_in_branches + num_since_cut)
