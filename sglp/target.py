"""Search for a plan that meets a target: keep the most layers within a share of the dense network's cost.

The cost is MACs, parameters or latency. The method is a black box from a number of layers to a plan, so the number is
found by bisection. Bounds on the savings for each number of layers give the range to search. A method's plan with fewer
layers can cost more, so the result is always a plan whose cost was measured.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from sglp.batches import to_device
from sglp.budget import Segments, check_removable, max_removable, savings
from sglp.cost import count_macs
from sglp.cutting import Inputs, first_sample
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
        rows: the method's scores for this plan.
        share: the remaining share of the dense network's cost, 0 to 1.
    """

    plan: Plan
    rows: list
    share: float


class RemainingCost:
    """The cost that remains of a network under a plan.

    MACs and parameters are exactly those of the network that `sglp.prune` returns, even if modules are shared. Latency
    is the median over rounds in which the dense and the pruned network run alternately; it varies between runs.

    Args:
        kind: "macs", "parameters" or "latency".
        network: the dense network; left unchanged.
        layers: the layers, from `find_layers`.
        inputs: the inputs of a batch; MACs and latency are measured on the first sample.

    Attributes:
        layer_costs: the cost of each layer; for latency its MACs, to guess which layer is cheapest.
        dense: the cost of the dense network; 1 for latency.
    """

    def __init__(self, kind: str, network: nn.Module, layers: Sequence[Layer], inputs: Inputs):
        self.kind, self.network, self.layers = kind, network, layers
        self.example = to_device(first_sample(inputs), device_of(network))
        if kind == "macs":
            self.bypass = Bypass(network, layers, self.example)
        self.layer_costs = [layer.parameters if kind == "parameters" else layer.macs for layer in layers]
        self.dense = 1.0 if kind == "latency" else self._measure(Plan.without(layers, ()))

    def share(self, plan: Plan) -> float:
        """Measure the remaining share of the dense network's cost under a plan.

        Latency differs between processes, so all of them use the measurement of the first.
        """
        return processes.from_rank_zero(lambda: self._measure(plan) / self.dense)

    def _measure(self, plan: Plan) -> float:
        return {"macs": self._macs, "parameters": self._parameters, "latency": self._latency_ratio}[self.kind](plan)

    def _macs(self, plan: Plan) -> int:
        removed = set(plan.removed)
        with self.bypass.without(i for i, layer in enumerate(self.layers) if layer.name in removed):
            return count_macs(self.network, self.example)

    def _parameters(self, plan: Plan) -> int:
        removed = {self.network.get_submodule(path) for path in plan.removed_modules}

        def remaining(module: nn.Module) -> set[nn.Parameter]:
            inside = (remaining(child) for child in module.children() if child not in removed)
            return set(module.parameters(recurse=False)).union(*inside)

        return sum(parameter.numel() for parameter in remaining(self.network))

    def _latency_ratio(self, plan: Plan) -> float:
        pruned = prune(self.network, plan).eval()
        with eval_mode(self.network), torch.no_grad():
            times = seconds_in_turn(
                lambda: call(self.network, self.example),
                lambda: call(pruned, self.example),
                ROUNDS,
                f"{len(plan.kept)} layers",
                device_of(pruned),
            )
        return statistics.median(after / before for before, after in times)


def search_keep_count(share: float, cost: RemainingCost, plan_for: PlanFor, segments: Segments) -> TargetPlan:
    """Find the method's plan that keeps the most layers within a share of the dense network's cost.

    Args:
        share: the greatest share that may remain, above 0 and below 1.
        cost: measures the remaining cost of a plan.
        plan_for: maps a number of layers to keep to the method's plan and its scores.
        segments: inclusive (first, last) pairs; each segment keeps at least one layer.

    Raises:
        BudgetError: no number of layers meets the target; the message gives the smallest share that was found.
    """
    shares: dict[int, float] = {}
    plans: list[TargetPlan] = []

    def meets(keep: int) -> bool:
        plan, rows = plan_for(keep)
        shares[keep] = cost.share(plan)
        if shares[keep] <= share:
            plans.append(TargetPlan(plan, rows, shares[keep]))
        return shares[keep] <= share

    fewest, sure, possible = _bracket(share, cost, segments)
    reached = _bisect(sure, possible, meets) or (fewest < sure and _bisect(fewest, sure - 1, meets))
    # Rare: plans with fewer layers cost more. Try every other number, the largest first.
    if not reached and not any(meets(keep) for keep in range(possible, fewest - 1, -1) if keep not in shares):
        raise BudgetError(_out_of_reach(share, cost.kind, "the method's plans leave", min(shares.values())))
    return max(plans, key=lambda candidate: len(candidate.plan.kept))


def _bisect(low: int, high: int, meets: Callable[[int], bool]) -> bool:
    """Search for the largest number that meets a target, and return whether any number did."""
    reached = False
    while low < high:
        middle = (low + high + 1) // 2
        if meets(middle):
            low, reached = middle, True
        else:
            high = middle - 1
    return reached or meets(low)


def _bracket(share: float, cost: RemainingCost, segments: Segments) -> tuple[int, int, int]:
    """Bound the number of layers to keep.

    Returns:
        The fewest layers that can be kept; the most for which every plan meets the target; the most for which some plan
        can meet it.

    Raises:
        BudgetError: no plan can meet the target.
    """
    layers, removable = cost.layers, [layer.removable for layer in cost.layers]
    check_removable(layers)
    smallest = cost.share(_smallest_plan(layers, segments, cost.layer_costs))
    if smallest > share:
        reason = f"layers that can't be removed, and one per segment (k={len(segments)}), leave"
        raise BudgetError(_out_of_reach(share, cost.kind, reason, smallest))
    fewest = len(layers) - sum(max_removable(segments, removable))
    if cost.kind == "latency":
        return fewest, fewest, len(layers) - 1
    # Layers that share parameters save less than their own cost, so `sure` is only where the search begins.
    sure, possible = (
        [len(layers) - removed for removed, saved in enumerate(sums) if (cost.dense - saved) / cost.dense <= share]
        for sums in savings(segments, removable, cost.layer_costs)
    )
    return fewest, max(sure, default=fewest), max(possible, default=fewest)


def _smallest_plan(layers: Sequence[Layer], segments: Segments, costs: Sequence[int]) -> Plan:
    """Make the plan that removes all removable layers, except the cheapest one of a segment that would be empty."""
    kept = {i for i, layer in enumerate(layers) if not layer.removable}
    for first, last in segments:
        inside = range(first, last + 1)
        if not kept.intersection(inside):
            kept.add(min(inside, key=lambda i: (costs[i], i)))
    return Plan.without(layers, set(range(len(layers))) - kept)


def _out_of_reach(share: float, kind: str, reason: str, least: float) -> str:
    reachable = math.ceil(1000 * least) / 1000
    return f"target: {kind}={share:g} is out of reach: {reason} at least {reachable:g} of the dense network's {kind}"
