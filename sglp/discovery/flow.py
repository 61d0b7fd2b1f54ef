"""The flow of one sample through a network, read off the autograd graph of one forward pass.

A *cut* is a point of the flow that everything passes: what follows depends on the input through it alone. Between two
neighbouring cuts the flow either runs straight (a convolution, an activation) or has branches (a residual connection,
attention). Branches that meet in a product are a gate (squeeze-excitation, SiLU written out), which counts as straight:
what it does is scale. Autograd sees every operation, also those that are no modules.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from sglp.errors import LayerError
from sglp.running import call, eval_mode, main_input


@dataclass(eq=False)
class Call:
    """One module's run in the forward pass.

    Attributes:
        path: the module's path.
        module: the module.
        outer: the run that it is inside of; None for the network's.
        times: how often the module ran.
        start, end: positions of the cuts at its input and output in the flow, or None where that is no cut.
        branches: how many operations between them are no cuts and no gate: they belong to branches of the flow.
        input_shape, output_shape: of the first tensor, without the batch dimension.
        given, returned: the container of what it is given to hand on and of what it returns, in words.
    """

    path: str
    module: nn.Module
    outer: "Call | None" = field(repr=False)
    inputs: tuple[list, list] = field(repr=False)  # behind what it hands on, and behind all that it is given
    input_shape: tuple[int, ...]
    given: str
    times: int = 1
    output: object = field(default=None, repr=False)
    output_shape: tuple[int, ...] = ()
    returned: str = ""
    start: int | None = None
    end: int | None = None
    branches: int = 0

    @property
    def straight_through(self) -> bool:
        """Whether the whole flow enters at its input and leaves at its output, once, with something in between."""
        return self.times == 1 and None not in (self.start, self.end) and self.start < self.end


def trace(network: nn.Module, example) -> list[Call]:
    """Run a network once and say where each module stands in the flow.

    Args:
        network: any module; left as it was (in train or eval mode, with its parameters' `requires_grad`).
        example: a tensor, or a dict of keyword arguments.

    Returns:
        A call a module that ran, in the order in which they started.

    Raises:
        LayerError: the output does not depend on the input by way of autograd.
    """
    calls: list[Call] = []
    looked_up: dict[bool, set] = {True: set(), False: set()}
    with _traceable(network), torch.enable_grad():
        inputs, sources = _differentiable(example)
        with _recorded(network, calls, looked_up, _memory(example)):
            output = call(network, inputs)
        # Other look-ups, as of positions, are no input, unless they are all there is (ids that were copied first).
        _place(calls, sources | (looked_up[True] or looked_up[False]), _nodes(output))
    return calls


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Eval mode and gradients for every parameter, for a while."""
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with eval_mode(network):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _differentiable(example) -> tuple[object, set]:
    """The example with gradients for what is real-valued, and the nodes of the graph where the flow starts."""
    if isinstance(example, Mapping):
        pairs = {key: _differentiable(value) for key, value in example.items()}
        return {key: value for key, (value, _) in pairs.items()}, set().union(*(s for _, s in pairs.values()))
    if isinstance(example, Tensor) and example.is_floating_point():
        leaf = example.detach().clone().requires_grad_(True)
        # Work on a view: an operation in place is not allowed on a leaf.
        moved = leaf.view_as(leaf)
        return moved, {get_gradient_edge(moved).node}
    return example, set()


def _nodes(value) -> list:
    """The nodes of the graph behind the tensors in what a module was given or returned."""
    if isinstance(value, Tensor):
        return [get_gradient_edge(value).node] if value.requires_grad else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [node for item in value for node in _nodes(item)]
    return []


def _shape(value) -> tuple[int, ...]:
    """The shape of the first tensor, without the batch dimension."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((shape for item in value if (shape := _shape(item))), ())
    return ()


def _container(value) -> str:
    if isinstance(value, Mapping) and not hasattr(value, "to_tuple"):  # which transformers' outputs have
        return "a dict"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else "a tensor"


def _memory(value) -> set[int]:
    """Where the tensors in a value lie in memory."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


@contextmanager
def _recorded(network: nn.Module, calls: list[Call], looked_up: dict[bool, set], memory: set[int]) -> Iterator[None]:
    """Hooks that append a `Call` a module, and what embeddings looked up: the example's ids (True) or others."""
    known: dict[nn.Module, Call] = {}
    running: list[Call] = []

    def before(path):
        def hook(module, args, kwargs):
            if module in known:
                known[module].times += 1
                running.append(known[module])
                return
            given = main_input(args, kwargs)
            nodes = (_nodes(given), _nodes([args, kwargs]))
            outer = running[-1] if running else None
            entry = Call(path, module, outer, nodes, _shape(given), _container(given))
            known[module] = entry
            calls.append(entry)
            running.append(entry)

        return hook

    def after(module, args, output):
        entry = running.pop()
        nodes = _nodes(output)
        entry.output, entry.output_shape = (nodes[0] if nodes else None), _shape(output)
        entry.returned = _container(output)
        if isinstance(module, nn.Embedding):
            looked_up[bool(_memory(args) & memory)].update(nodes)

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _place(calls: list[Call], sources: set, sinks: list) -> None:
    """Fill in where each call stands between the cuts of the flow."""
    order = _flow(sources, sinks[:1])
    if not order:
        raise LayerError("the network's output does not depend on its input by way of autograd: no layers can be found")
    index = {node: i for i, node in enumerate(order)}
    spans = [0] * (len(order) + 1)  # how many edges of the flow lead past a node
    for node in order:
        # The sources are joined: what lies beside one of them and before its consumer is no cut.
        earlier = [-1] if node in sources else [index[n] for n, _ in node.next_functions if n in index]
        for source in earlier:
            if index[node] > source + 1:
                spans[source + 1] += 1
                spans[index[node]] -= 1
    cut, branches, running, beside, found = {}, {}, 0, 0, 0
    for i, node in enumerate(order):
        running += spans[i]
        if running:
            beside += 1
            continue
        found += 0 if node.name().startswith("Mul") else beside
        beside = 0
        cut[node], branches[i] = i, found
    for entry in calls:
        handed, given = entry.inputs
        inside = {node for node in given if node in index}
        if len(inside) == 1 and inside.issubset(handed) and entry.output in cut:
            entry.start, entry.end = cut.get(inside.pop()), cut[entry.output]
            if entry.start is not None:
                entry.branches = branches[entry.end] - branches[entry.start]


def _flow(sources: set, sinks: list) -> list:
    """The nodes on a way from the sources to the output, in topological order."""
    # Depth first without recursion: a deep network's graph is deeper than Python's stack.
    reaches: dict = {}
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
