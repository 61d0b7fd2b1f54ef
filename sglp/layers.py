"""Finds a network's layers by running it, at the granularity of the literature, for any architecture.

The rule: a *block* is a module that holds whole branching parts of the flow (see `flow`), of which one at least lies in
no smaller module, and whose kind (its class) keeps the shape at least once in this network; all modules of such a kind
are layers, taken from the outside in. In a network of transformers the blocks are what its config counts as layers, if
the flow passes through them. A network without blocks consists of units: a module with a weight (convolution or linear
layer, whichever is more frequent) and its siblings after it, up to the next one, as long as they keep the shape.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from sglp import cost
from sglp.errors import LayerError
from sglp.flow import Call, trace
from sglp.hugging_face import is_pretrained, stacked_layers, ties_between_layers

STEM = "stem"


@dataclass(frozen=True)
class Layer:
    """A part of a network that runs once, in order.

    Attributes:
        name: module paths joined by "+": one, or a run of siblings.
        removable: whether it maps a tensor to one of the same shape, so that it can be left out.
        reason: why not, or "" where it is removable.
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and matrix products, for one sample.
    """

    name: str
    removable: bool
    reason: str
    parameters: int
    macs: int

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of its modules."""
        return tuple(self.name.split("+"))

    @property
    def is_stem(self) -> bool:
        """Whether it is what comes before the first block."""
        return self.reason == STEM


def find_layers(model: nn.Module, example) -> list[Layer]:
    """The layers of a network in order of execution, found by one forward pass.

    What comes before the first block is the first layer (the stem), unless the input is token ids, whose embedding is
    no layer. What comes after the last one (the head) is none.

    Args:
        model: any module; left as it was.
        example: a tensor [samples, ...], or a dict of keyword arguments.

    Raises:
        LayerError: no layers can be told apart, or they need each other.
    """
    ties = ties_between_layers(model) if is_pretrained(model) else ""
    if ties:
        raise LayerError(ties)
    calls = trace(model, example)
    stacked = stacked_layers(model) if is_pretrained(model) else set()
    groups = _blocks(calls, stacked) or _units(calls)
    if not groups:
        raise LayerError(f"no layers can be told apart in {type(model).__name__}: it has no blocks that run in a row")
    macs = cost.macs_by_module(model, example)
    layers = [_layer(group, _reason(group), macs) for group in groups]
    stem = _stem(calls, groups[0])
    return [_layer(stem, STEM, macs), *layers] if stem else layers


def _layer(calls: list[Call], reason: str, macs: dict[str, int]) -> Layer:
    parameters = {p for entry in calls for p in entry.module.parameters()}
    return Layer(
        name="+".join(entry.path for entry in calls),
        removable=not reason,
        reason=reason,
        parameters=sum(p.numel() for p in parameters),
        macs=sum(macs.get(entry.path, 0) for entry in calls),
    )


def _reason(group: list[Call]) -> str:
    before, after = group[0].input_shape, group[-1].output_shape
    if before != after:
        return f"changes the shape from {_text(before)} to {_text(after)}"
    return ""


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _inside(entry: Call, outer: Call) -> bool:
    return entry.path.startswith(f"{outer.path}.") if outer.path else bool(entry.path)


def _blocks(calls: list[Call], stacked: set[str]) -> list[list[Call]]:
    # A norm that is written out (RMSNorm) branches too, but holds no matrix.
    branching = [c for c in calls if c.straight_through and c.branches and c.path]
    smallest = [c for c in branching if c.path in stacked] or [
        c for c in branching if _holds_weight(c.module) and c.branches > _branches_inside(c, branching)
    ]
    kinds = {type(entry.module) for entry in smallest if not _reason([entry])}
    blocks: list[Call] = []
    for entry in calls:
        if type(entry.module) in kinds and entry.straight_through and not any(_inside(entry, b) for b in blocks):
            blocks.append(entry)
    return [[entry] for entry in blocks]


def _branches_inside(outer: Call, branching: list[Call]) -> int:
    """How much of a module's branches lies in modules inside of it (BERT's second residual lies in none)."""
    inside = [entry for entry in branching if _inside(entry, outer)]
    return sum(a.branches for a in inside if not any(_inside(a, b) for b in inside))


def _units(calls: list[Call]) -> list[list[Call]]:
    leaves = [entry for entry in calls if entry.straight_through and not any(entry.module.children())]
    weighted = Counter(type(entry.module) for entry in leaves if _has_weight(entry.module))
    if not weighted:
        return []
    kind = weighted.most_common(1)[0][0]
    units: list[list[Call]] = []
    open_ = False
    for entry in leaves:
        if type(entry.module) is kind:
            units.append([entry])
            open_ = True
        elif open_ and not _has_weight(entry.module) and entry.input_shape == entry.output_shape:
            open_ = _siblings(entry, units[-1][0])
            if open_:
                units[-1].append(entry)
        else:
            open_ = False
    return units


def _has_weight(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _holds_weight(module: nn.Module) -> bool:
    return any(_has_weight(child) for child in module.modules())


def _siblings(a: Call, b: Call) -> bool:
    return a.path.rpartition(".")[0] == b.path.rpartition(".")[0]


def _stem(calls: list[Call], first: list[Call]) -> list[Call]:
    """The outermost modules that ran before the first layer, if they have parameters and the input is no token ids."""
    before = calls[: calls.index(first[0])]
    stem: list[Call] = []
    for entry in before:
        if not _inside(first[0], entry) and not any(_inside(entry, s) for s in stem):
            stem.append(entry)
    if any(isinstance(m, nn.Embedding) for entry in stem for m in entry.module.modules()):
        return []
    return stem if any(True for entry in stem for _ in entry.module.parameters()) else []
