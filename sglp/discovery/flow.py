"""Trace the flow of one sample through a network, from the autograd graph of one forward pass.

A *cut* is a point of the flow that everything passes: what follows depends on the input only through that point.
Between two neighbouring cuts the flow is either straight (a convolution, an activation) or has branches (a residual
connection, attention). Branches that meet in a product are a gate (squeeze-excitation, SiLU written out), which counts
as straight: a gate only scales. Autograd also sees operations that are not modules.

The flow *through a module* is the part between its input and its output, or its streams if it takes and returns
several. It has cuts of its own, whatever runs beside the module and whatever else the module is passed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from sglp.cutting import Inputs
from sglp.discovery.cuts import cuts_of, flow_between, part_between
from sglp.discovery.watchable import reason_without_flow, without_checkpoints
from sglp.errors import LayerError
from sglp.running import call, eval_mode, main_input
from sglp.surgery.streams import Arguments, Edge, first_edge


@dataclass(eq=False)
class Call:
    """One module's call in the forward pass.

    Attributes:
        path: the module's path.
        module: the module.
        outer: the call that this call is nested in; None for the network's own call.
        arguments: all arguments, as they were before the call.
        inputs: the graph nodes of the main input (see `main_input`), and the nodes of all arguments.
        input_shape, output_shape: shapes of the first output tensor and of the argument that can take its place,
            without the batch dimension.
        input_kind, output_kind: the containers of the main input and of the output, in words.
        times: number of calls of the module.
        sources, sinks: the graph nodes where the flow through the module starts and ends.
        edge: the graph edge of the first output tensor, or None.
        is_bottleneck: whether the whole flow of the network passes its main input and its output.
        lost: graph nodes of outputs that nothing could take the place of if the module were removed.
        has_flow: whether its output depends on its input, and an output of the network on its output.
        cuts: the cuts of the flow through the module.
        branches: number of operations of the flow through the module that belong to branches: they are neither cuts nor
            parts of a gate.
        added: whether the parent adds the output to the input, or to the input of the modules before it in a layer.
    """

    path: str
    module: nn.Module
    outer: "Call | None" = field(repr=False)
    arguments: Arguments = field(repr=False)
    inputs: tuple[list[Node], list[Node]] = field(repr=False)
    input_shape: tuple[int, ...]
    input_kind: str
    times: int = 1
    sources: list[Node] = field(default_factory=list, repr=False)
    sinks: list[Node] = field(default_factory=list, repr=False)
    edge: Edge | None = field(default=None, repr=False)
    output_shape: tuple[int, ...] = ()
    output_kind: str = ""
    is_bottleneck: bool = False
    lost: list[Node] = field(default_factory=list, repr=False)
    has_flow: bool = False
    cuts: set[Node] = field(default_factory=set, repr=False)
    branches: int = 0
    added: bool = False

    @property
    def straight_through(self) -> bool:
        """Whether the module runs once, does something, and the whole flow of the network passes through it."""
        return self.times == 1 and self.is_bottleneck

    @property
    def runs_once(self) -> bool:
        """Whether the module runs once and does something to what it is passed."""
        return self.times == 1 and self.has_flow


class Flow(NamedTuple):
    """The flow of a sample through a network.

    Attributes:
        calls: one call per module that ran, in the order in which the modules started.
        consumers: maps each graph node to the nodes that read it.
    """

    calls: list[Call]
    consumers: dict[Node, list[Node]]


def trace(network: nn.Module, example: Inputs) -> Flow:
    """Run a network once and find the flow through each of its modules.

    Args:
        network: any module; left unchanged (train or eval mode, its parameters' `requires_grad`).
        example: a tensor, or a dict of keyword arguments.

    Raises:
        LayerError: autograd does not connect the output with the input.
    """
    calls: list[Call] = []
    embedded: dict[bool, set[Node]] = {True: set(), False: set()}
    with _traceable(network), torch.enable_grad(), without_checkpoints():
        inputs, sources = _differentiable(example)
        with _recording(network, calls, embedded, _storages(example)):
            output = call(network, inputs)
        # Other embeddings (positions) are not inputs, unless no embedding reads the example itself (copied ids).
        sources |= embedded[True] or embedded[False]
        consumers = _place(calls, sources, _nodes(output))
    if not consumers:
        raise LayerError(f"no layers can be found in {type(network).__name__}: {reason_without_flow(network)}")
    return Flow(calls, consumers)


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
            main = main_input(args, kwargs)
            nodes = (_nodes(main), _nodes([args, kwargs]))
            outer = running[-1] if running else None
            arguments = Arguments.of_call(args, kwargs)
            entry = Call(path, module, outer, arguments, nodes, _shape(main), _kind(main))
            first_calls[module] = entry
            calls.append(entry)
            running.append(entry)

        return hook

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        entry = running.pop()
        nodes = _nodes(output)
        entry.output_shape = _shape(output)
        entry.output_kind = _kind(output)
        entry.sources, entry.sinks, shape = entry.arguments.flow_to(output)
        entry.input_shape = entry.input_shape if shape is None else shape
        entry.edge = first_edge(output)
        entry.lost = entry.arguments.without_substitute(output)
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


def _place(calls: list[Call], sources: set[Node], sinks: list[Node]) -> dict[Node, list[Node]]:
    """Find the flow through each call; return the nodes that read each node, or {} if there is no flow."""
    order = flow_between(sources, sinks)
    if not order:
        return {}
    index = {node: i for i, node in enumerate(order)}
    main = next(node for node in sinks if node in index)  # networks may return features or losses beside it
    cuts = cuts_of(flow_between(sources, [main]), sources, [main]).positions
    consumers: dict[Node, list[Node]] = {}
    for node in order:
        for earlier, _ in node.next_functions:
            if earlier in index:
                consumers.setdefault(earlier, []).append(node)
    for entry in calls:
        main_nodes, all_nodes = entry.inputs
        inside = {node for node in all_nodes if node in index}
        if len(inside) == 1 and inside.issubset(main_nodes) and entry.edge is not None:
            start, end = cuts.get(inside.pop()), cuts.get(entry.edge[0])
            entry.is_bottleneck = start is not None and end is not None and start < end
        starts, ends = ({node for node in nodes if node in index} for nodes in (entry.sources, entry.sinks))
        part = part_between(order, index, starts, list(ends))
        entry.has_flow = bool(part)
        own = set(part)
        entry.lost = [n for n in entry.lost if n in sinks or not own.issuperset(consumers.get(n, ()))]
        if part:
            positions, entry.branches = cuts_of(part, starts, list(ends))
            entry.cuts = set(positions)
    return consumers
