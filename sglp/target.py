"""Meets a target: as many layers stay as leave at most a share of the dense network's MACs, parameters or latency.

A method is asked for so many layers, and no more is known of it: the number is found by bisection. How much can be
saved with so many layers at least, and at most, says where to look. Fewer layers can cost more where a method then
keeps others, so what meets the target is always a plan that was measured.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from sglp.batches import first_sample, to_device
from sglp.budget import Segments, check_removable, most_to_go, savings
from sglp.cost import count_macs
from sglp.distributed import processes
from sglp.errors import BudgetError
from sglp.latency import seconds_in_turn
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.running import call, device_of, eval_mode
from sglp.surgery.bypass import Bypass
from sglp.surgery.prune import prune

PlanFor = Callable[[int], tuple[Plan, list]]
ROUNDS = 15


class TargetPlan(NamedTuple):
    """A plan that meets a target.

    Attributes:
        plan: the plan.
        rows: what the method scored for it.
        share: what it leaves of the dense network's cost, 0 to 1.
    """

    plan: Plan
    rows: list
    share: float


class RemainingCost:
    """What plans leave of a network's cost.

    MACs and parameters are exact: those of `sglp.prune`'s network, also where modules are shared. Latency is the median
    over rounds in which the dense and the pruned network run in turn: the one thing here that differs from run to run.

    Args:
        of: "macs", "parameters" or "latency".
        network: the dense network; left as it was.
        layers: what `find_layers` found.
        inputs: those of a batch; MACs and latency are of its first sample.
    """

    def __init__(self, of: str, network: nn.Module, layers: Sequence[Layer], inputs):
        example = to_device(first_sample(inputs), device_of(network))
        self.of, self.network, self.layers, self.example = of, network, layers, example
        self.bypass = Bypass(network, layers, example) if of == "macs" else None
        # Of each layer; where time counts, to guess which is the cheapest.
        self.of_layers = [layer.parameters if of == "parameters" else layer.macs for layer in layers]
        self.dense = 1.0 if of == "latency" else self._left(Plan.without(layers, ()))

    def share(self, plan: Plan) -> float:
        """What a plan leaves, as a share of the dense network's.

        Latency differs from process to process: all go by what the first one measures.
        """
        return processes.from_rank_zero(lambda: self._left(plan) / self.dense)

    def _left(self, plan: Plan) -> float:
        return {"macs": self._macs, "parameters": self._parameters, "latency": self._latency}[self.of](plan)

    def _macs(self, plan: Plan) -> int:
        gone = set(plan.removed)
        with self.bypass.without(i for i, layer in enumerate(self.layers) if layer.name in gone):
            return count_macs(self.network, self.example)

    def _parameters(self, plan: Plan) -> int:
        gone = {self.network.get_submodule(path) for path in plan.removed_modules}

        def left(module: nn.Module) -> set[nn.Parameter]:
            inside = (left(child) for child in module.children() if child not in gone)
            return set(module.parameters(recurse=False)).union(*inside)

        return sum(parameter.numel() for parameter in left(self.network))

    def _latency(self, plan: Plan) -> float:
        pruned = prune(self.network, plan).eval()
        with eval_mode(self.network), torch.no_grad():
            work = [lambda network=network: call(network, self.example) for network in (self.network, pruned)]
            times = seconds_in_turn(*work, ROUNDS, f"{len(plan.kept)} layers", device_of(pruned))
        return statistics.median(after / before for before, after in times)


def search_keep_count(share: float, cost: RemainingCost, ask: PlanFor, segments: Segments) -> TargetPlan:
    """The plan of a method that leaves at most a share of the dense network's cost, with as many layers as that allows.

    Args:
        share: at most this much may be left, above 0 and below 1.
        cost: what plans leave.
        ask: the plan for a number of layers that stay, and the rows of its scores.
        segments: inclusive (first, last); each keeps a layer.

    Raises:
        BudgetError: no number of layers meets the target: the message says which share can be reached.
    """
    left: dict[int, float] = {}
    met: list[TargetPlan] = []

    def meets(keep: int) -> bool:
        plan, rows = ask(keep)
        left[keep] = cost.share(plan)
        if left[keep] <= share:
            met.append(TargetPlan(plan, rows, left[keep]))
        return left[keep] <= share

    fewest, sure, possible = _bracket(share, cost, segments)
    found = _bisect(sure, possible, meets) or (fewest < sure and _bisect(fewest, sure - 1, meets))
    # Rare: fewer layers cost more. Whatever else could meet it is then asked for, the most layers first.
    if not found and not any(meets(keep) for keep in range(possible, fewest - 1, -1) if keep not in left):
        raise BudgetError(_out_of_reach(share, cost.of, "the method's plans leave", min(left.values())))
    return max(met, key=lambda found: len(found.plan.kept))


def _bisect(low: int, high: int, meets: Callable[[int], bool]) -> bool:
    """Look for the most layers that meet a target; whether any did."""
    found = False
    while low < high:
        middle = (low + high + 1) // 2
        if meets(middle):
            low, found = middle, True
        else:
            high = middle - 1
    return found or meets(low)


def _bracket(share: float, cost: RemainingCost, segments: Segments) -> tuple[int, int, int]:
    """The fewest layers that can stay, the most with which every plan meets a target, the most with which one can.

    Raises:
        BudgetError: none can.
    """
    layers, removable = cost.layers, [layer.removable for layer in cost.layers]
    check_removable(layers)
    deepest = cost.share(_deepest(layers, segments, cost.of_layers))
    if deepest > share:
        reason = f"layers that can't go, and one a segment (k={len(segments)}), leave"
        raise BudgetError(_out_of_reach(share, cost.of, reason, deepest))
    fewest = len(layers) - sum(most_to_go(segments, removable))
    if cost.of == "latency":
        return fewest, fewest, len(layers) - 1
    # Layers that share parameters save less than they have: what is sure is then only a place to look first.
    sure, possible = (
        [len(layers) - gone for gone, saved in enumerate(sums) if (cost.dense - saved) / cost.dense <= share]
        for sums in savings(segments, removable, cost.of_layers)
    )
    return fewest, max(sure, default=fewest), max(possible, default=fewest)


def _deepest(layers: Sequence[Layer], segments: Segments, costs: Sequence[int]) -> Plan:
    """The plan without all layers that can go, but the cheapest one of a segment that would lose all."""
    kept = {i for i, layer in enumerate(layers) if not layer.removable}
    for first, last in segments:
        inside = range(first, last + 1)
        if not kept.intersection(inside):
            kept.add(min(inside, key=lambda i: (costs[i], i)))
    return Plan.without(layers, set(range(len(layers))) - kept)


def _out_of_reach(share: float, of: str, reason: str, least: float) -> str:
    reachable = math.ceil(1000 * least) / 1000
    return f"target: {of}={share:g} is out of reach: {reason} {reachable:g} of the dense network's {of} at least"
