"""The streams of a module: the tensors that it takes and returns, and that pass it by if it is removed.

This is the one definition of what a module returns if it does nothing. Discovery follows the flow through these
tensors, and a bypass returns them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from sglp.running import main_input

Edge = tuple[Node, int]  # a graph node, and which of its outputs


class Slot(NamedTuple):
    """An argument or an output of a module, without its memory.

    Attributes:
        kind: class of the value; `Tensor` for all tensors and `tuple` for all sequences.
        shape: of a tensor; length of a sequence.
        is_float: whether it is a tensor of real numbers.
        edge: its graph edge, or None.
    """

    kind: type
    shape: tuple[int, ...]
    is_float: bool
    edge: Edge | None

    def is_like(self, other: "Slot") -> bool:
        """Whether one value can take the other's place."""
        return self[:3] == other[:3]


class Arguments(NamedTuple):
    """The arguments of a call.

    Attributes:
        slots: one per argument, positional ones first.
        main: index of the main input (see `main_input`), or None.
        items: slots of the items of the main input, if it is a sequence.
    """

    slots: list[Slot]
    main: int | None
    items: list[Slot]

    @classmethod
    def of_call(cls, args: tuple, kwargs: dict) -> "Arguments":
        """Describe the arguments of a call."""
        values = (*args, *kwargs.values())
        main = main_input(args, kwargs)
        index = next((i for i, value in enumerate(values) if value is main), None) if main is not None else None
        items = [slot_of(item) for item in main] if isinstance(main, tuple | list) else []
        return cls([slot_of(value) for value in values], index, items)

    def substitutes(self, output: Any) -> list[int | None]:
        """Return, for each value that a module returns, the index of the argument that takes its place, or None.

        The first value is the main input. Any other is the argument in the same position if that is alike (a tensor of
        the same shape), or the next tensor that is. Where the main input is not alike, the first value is a tensor that
        is: blocks of two streams may take and return them in different orders.
        """
        outputs = [slot_of(value) for value in items_of(output)]
        found: list[int | None] = []
        for position, wanted in enumerate(outputs):
            alike = [i for i, slot in enumerate(self.slots) if slot.is_like(wanted) and i not in found]
            last = next((i for i in reversed(found) if i is not None), -1)
            preferred = self.main if position == 0 else position
            if preferred in alike:
                found.append(preferred)
            elif wanted.kind is Tensor and len(wanted.shape) > 0:
                found.append(next((i for i in alike if i > last), next(iter(alike), None)))
            else:
                found.append(None)
        if found and found[0] is None:
            found[0] = self.main
        return found

    def flow_to(self, output: Any) -> tuple[list[Node], list[Node], tuple[int, ...] | None]:
        """Return the graph nodes between which the flow through the module runs.

        Also returns the shape of the tensor that takes the place of the first output, without the batch dimension; None
        if the main input is a sequence or there is no such tensor.
        """
        outputs = [slot_of(value) for value in items_of(output)]
        edges = [slot.edge for slot in outputs if slot.edge is not None]
        if self.items:
            streams = [slot.edge for slot in self.items if slot.edge is not None]
            ends = edges if len(outputs) == len(self.items) else edges[:1]
            return [node for node, _ in streams], [node for node, _ in ends], None
        indices = self.substitutes(output)
        pairs: list[tuple[Edge, Edge]] = []
        for i, slot in zip(indices, outputs, strict=True):
            before = None if i is None else self.slots[i].edge
            if before is not None and slot.edge is not None and before != slot.edge:
                pairs.append((before, slot.edge))
        first = next((None if i is None else self.slots[i] for i in indices[:1]), None)
        shape = first.shape[1:] if first is not None and first.kind is Tensor else None
        if len(pairs) > 1:
            return [a[0] for a, _ in pairs], [b[0] for _, b in pairs], shape
        main = self.slots[self.main].edge if self.main is not None else None
        start = first.edge if first is not None and first.edge is not None else main
        return [start[0]] if start else [], [node for node, _ in edges[:1]], shape

    def without_substitute(self, output: Any) -> list[Node]:
        """Return the graph nodes of the tensors that a module returns and that no argument can take the place of."""
        if self.items:
            return []
        outputs = [slot_of(value) for value in items_of(output)]
        edges = [
            slot.edge
            for index, slot in zip(self.substitutes(output), outputs, strict=True)
            if index is None and slot.shape
        ]
        return [edge[0] for edge in edges if edge is not None]


def slot_of(value: Any) -> Slot:
    """Describe an argument or an output."""
    if isinstance(value, Tensor):
        edge = get_gradient_edge(value) if value.requires_grad else None
        return Slot(Tensor, tuple(value.shape), value.is_floating_point(), edge and (edge.node, edge.output_nr))
    if isinstance(value, tuple | list):
        return Slot(tuple, (len(value),), False, None)
    return Slot(type(value), (), False, None)


def items_of(output: Any) -> Sequence[Any]:
    """Return the values that a module returns: the items of a sequence or of a mapping, or the only value."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def first_edge(output: Any) -> Edge | None:
    """Return the graph edge of the first output that has one; sequences and mappings can be nested."""
    if isinstance(output, Tensor):
        return slot_of(output).edge
    if isinstance(output, tuple | list | Mapping):
        return next((edge for item in items_of(output) if (edge := first_edge(item))), None)
    return None


def changes_more_streams(args: tuple, kwargs: dict, output: Any) -> bool:
    """Whether a module returns more than one tensor that takes the place of an argument, and not that argument."""
    values = (*args, *kwargs.values())
    arguments = Arguments.of_call(args, kwargs)
    main = main_input(args, kwargs)
    outputs = items_of(output)
    if isinstance(main, tuple | list):
        pairs = list(zip(main, outputs, strict=False)) if len(main) == len(outputs) else []
    else:
        indices = arguments.substitutes(output)
        pairs = [(values[i], value) for i, value in zip(indices, outputs, strict=True) if i is not None]
    tensors = [(a, b) for a, b in pairs[1:] if isinstance(a, Tensor) and isinstance(b, Tensor) and b.ndim]
    return any(a.shape == b.shape and not torch.equal(a, b) for a, b in tensors)
