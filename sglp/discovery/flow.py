"""Trace the flow of one sample through a network, from the autograd graph of one forward pass.

A *cut* is a point of the flow that everything passes: what follows depends on the input only through that point.
Between two neighbouring cuts the flow is either straight (a convolution, an activation) or has branches (a residual
connection, attention). Branches that meet in a product are a gate (squeeze-excitation, SiLU written out), which counts
as straight: a gate only scales. Autograd also sees operations that are not modules.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from sglp.batches import Inputs
from sglp.errors import LayerError
from sglp.running import call, eval_mode, main_input


@dataclass(eq=False)
class Call:
    """One module's call in the forward pass.

    Attributes:
        path: the module's path.
        module: the module.
        outer: the call that this call is nested in; None for the network's own call.
        inputs: the graph nodes of the main input (see `main_input`), and the nodes of all arguments.
        input_shape, output_shape: shapes of the first tensor, without the batch dimension.
        input_kind, output_kind: the containers of the main input and of the output, in words.
        times: number of calls of the module.
        output: the graph node of the first output tensor, or None.
        start, end: positions of the cuts at the module's input and output in the flow, or None where there is no cut.
        branches: number of operations between `start` and `end` that belong to branches of the flow: they are neither
            cuts nor parts of a gate.
    """

    path: str
    module: nn.Module
    outer: "Call | None" = field(repr=False)
    inputs: tuple[list[Node], list[Node]] = field(repr=False)
    input_shape: tuple[int, ...]
    input_kind: str
    times: int = 1
    output: Node | None = field(default=None, repr=False)
    output_shape: tuple[int, ...] = ()
    output_kind: str = ""
    start: int | None = None
    end: int | None = None
    branches: int = 0

    @property
    def straight_through(self) -> bool:
        """Whether the module runs once, does something, and the whole flow passes through it."""
        return self.times == 1 and self.start is not None and self.end is not None and self.start < self.end


def trace(network: nn.Module, example: Inputs) -> list[Call]:
    """Run a network once and find the position of each module in the flow.

    Args:
        network: any module; left unchanged (train or eval mode, its parameters' `requires_grad`).
        example: a tensor, or a dict of keyword arguments.

    Returns:
        One call per module that ran, in the order in which the modules started.

    Raises:
        LayerError: autograd does not connect the output with the input.
    """
    calls: list[Call] = []
    embedded: dict[bool, set[Node]] = {True: set(), False: set()}
    with _traceable(network), torch.enable_grad():
        inputs, sources = _differentiable(example)
        with _recording(network, calls, embedded, _storages(example)):
            output = call(network, inputs)
        # Other embeddings (positions) are not inputs, unless no embedding reads the example itself (copied ids).
        _place(calls, sources | (embedded[True] or embedded[False]), _nodes(output))
    return calls


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Use eval mode and gradients of all parameters inside a context."""
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with eval_mode(network):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _differentiable(example: Any) -> tuple[Any, set[Node]]:
    """Return the example with gradients for its real-valued tensors, and the graph nodes where the flow starts."""
    if isinstance(example, Mapping):
        pairs = {key: _differentiable(value) for key, value in example.items()}
        return {key: value for key, (value, _) in pairs.items()}, set().union(*(s for _, s in pairs.values()))
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        items = [_differentiable(item) for item in example]
        values = [value for value, _ in items]
        return type(example)(values), set().union(*(source for _, source in items))
    if isinstance(example, Tensor) and example.is_floating_point():
        leaf = example.detach().clone().requires_grad_(True)
        # Use a view, because a leaf can't be modified in place.
        view = leaf.view_as(leaf)
        return view, {get_gradient_edge(view).node}
    return example, set()


def _nodes(value: Any) -> list[Node]:
    """Return the graph nodes of the tensors in the arguments or the output of a module."""
    if isinstance(value, Tensor):
        return [get_gradient_edge(value).node] if value.requires_grad else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [node for item in value for node in _nodes(item)]
    return []


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of the first tensor, without the batch dimension."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((shape for item in value if (shape := _shape(item))), ())
    return ()


def _kind(value: Any) -> str:
    if isinstance(value, Mapping) and not hasattr(value, "to_tuple"):  # Hugging Face outputs have a to_tuple
        return "a dict"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else "a tensor"


def _storages(value: Any) -> set[int]:
    """Return the memory addresses of the tensors in a value."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


@contextmanager
def _recording(
    network: nn.Module, calls: list[Call], embedded: dict[bool, set[Node]], storages: set[int]
) -> Iterator[None]:
    """Record every module's call inside a context, and the outputs of embeddings.

    Args:
        network: the network.
        calls: receives one `Call` per module.
        embedded: receives the graph nodes of embeddings, of the example's ids under True, of other ids under False.
        storages: the memory addresses of the example's tensors.
    """
    first_calls: dict[nn.Module, Call] = {}
    running: list[Call] = []

    def before(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if module in first_calls:
                first_calls[module].times += 1
                running.append(first_calls[module])
                return
            argument = main_input(args, kwargs)
            nodes = (_nodes(argument), _nodes([args, kwargs]))
            outer = running[-1] if running else None
            entry = Call(path, module, outer, nodes, _shape(argument), _kind(argument))
            first_calls[module] = entry
            calls.append(entry)
            running.append(entry)

        return hook

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        entry = running.pop()
        nodes = _nodes(output)
        entry.output = nodes[0] if nodes else None
        entry.output_shape = _shape(output)
        entry.output_kind = _kind(output)
        if isinstance(module, nn.Embedding):
            embedded[bool(_storages(args) & storages)].update(nodes)

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _place(calls: list[Call], sources: set[Node], sinks: list[Node]) -> None:
    """Set the position of each call between the cuts of the flow."""
    order = _flow(sources, sinks[:1])
    if not order:
        raise LayerError("no layers can be found: autograd does not connect the network's output with its input")
    index = {node: i for i, node in enumerate(order)}
    spans = [0] * (len(order) + 1)  # running sum: number of edges of the flow that lead past a node
    for node in order:
        # The sources are joined: a node between a source and its consumer is not a cut.
        earlier = [-1] if node in sources else [index[n] for n, _ in node.next_functions if n in index]
        for source in earlier:
            if index[node] > source + 1:
                spans[source + 1] += 1
                spans[index[node]] -= 1
    cuts: dict[Node, int] = {}
    branches: dict[int, int] = {}  # number of operations in branches before each cut
    edges_past = num_in_branches = num_since_cut = 0
    for i, node in enumerate(order):
        edges_past += spans[i]
        if edges_past:
            num_since_cut += 1
            continue
        num_in_branches += 0 if node.name().startswith("Mul") else num_since_cut  # a product ends a gate
        num_since_cut = 0
        cuts[node] = i
        branches[i] = num_in_branches
    for entry in calls:
        main_nodes, all_nodes = entry.inputs
        inside = {node for node in all_nodes if node in index}
        if len(inside) == 1 and inside.issubset(main_nodes) and entry.output in cuts:
            entry.start = cuts.get(inside.pop())
            entry.end = cuts[entry.output]
            if entry.start is not None:
                entry.branches = branches[entry.end] - branches[entry.start]


def _flow(sources: set[Node], sinks: list[Node]) -> list[Node]:
    """Return the graph nodes on the paths from the sources to the output, in topological order."""
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
