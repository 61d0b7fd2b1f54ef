"""Refit each kept layer to the activation that the dense network has at its place.

The dense and the pruned network advance together. In order of depth, each kept layer from the first gap on gets the
input that the pruned network, reconstructed so far, gives it. Its target is the dense network's activation after the
removed layers that follow it. No labels are needed. Where the layer is affine in its last linear map, the best weight
has a closed form; elsewhere a few steps of Adam on the layer's own parameters fit it. New weights are kept only if the
error on held-out samples falls.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sglp.batches import at_least_one, inputs_of, rebatch, size_of, to_device
from sglp.errors import PlanError
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.reconstruction import gradient
from sglp.reconstruction.affine import last_linear_map, weight_of
from sglp.reconstruction.closed_form import least_squares
from sglp.reconstruction.lockstep import Pass, in_lockstep, pause_after, pause_before
from sglp.reconstruction.rows import channels_first, padding_mask, relative_error, row_weights, rows
from sglp.running import device_of, first_tensor, run_hooked
from sglp.surgery.prune import PassThrough

Method = Literal["auto", "closed_form", "gradient"]
Scope = Literal["all", "gaps"]
PARTS = 8  # one of which is held out


class Reconstructed(NamedTuple):
    """What happened to a kept layer.

    Attributes:
        layer: its name in the dense network.
        target: the dense layer after which the activation is the target.
        how: "closed_form" or "gradient", or "" where nothing can be fitted.
        before, after: mean relative squared error on held-out samples, with the old and the new weights.
        kept: whether the new weights are kept.
    """

    layer: str
    target: str
    how: str
    before: float
    after: float
    kept: bool


class _Goal(NamedTuple):
    """A kept layer: its name, its modules in the pruned network, and the dense layer whose output is the target."""

    name: str
    modules: list[nn.Module]
    target: str


class _Sample(NamedTuple):
    """A batch at one layer: how to run the layer on it, target rows, row weights."""

    run: Callable[[], Any]
    target: Tensor
    weights: Tensor


def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    batches: Iterable,
    *,
    method: Method = "auto",
    scope: Scope = "all",
    ridge: float = 0.1,
    steps: int = 60,
) -> list[Reconstructed]:
    """Refit the kept layers of a pruned network, in place.

    Args:
        dense: the network before the removal; left as it was.
        pruned: what `sglp.prune` made of it, on the same device.
        plan: the plan between them.
        batches: calibration data: inputs, or pairs (inputs, target) whose target is not used. An eighth is held out.
            Padding tokens do not count where the inputs have an attention mask.
        method: "closed_form" fits only layers that are affine in their last linear map, "gradient" fits all layers by
            gradient, "auto" fits each layer by the closed form where there is one.
        scope: "all" kept layers from the first gap on, or only those right before "gaps".
        ridge: see `least_squares`.
        steps: of Adam, for each layer that is fitted by gradient.

    Returns:
        One row for each kept layer from the first gap on, in order of depth.

    Raises:
        ScoringError: there is no batch.
        PlanError: the pruned network is not what the plan makes of the dense one.
    """
    counterparts = _counterparts(dense, pruned, plan)
    device = device_of(pruned)
    inputs = [to_device(inputs_of(batch), device) for batch in at_least_one(batches, "reconstruct layers with")]
    goals = _goals(_order(dense, plan, inputs[0]), counterparts, plan, scope)
    if not goals:
        return []
    fitting, held = _split(inputs)
    inputs = [*fitting, *held]
    masks = [padding_mask(one) for one in inputs]
    shared = _shared_parameters(pruned)
    results = []
    with ExitStack() as stack:
        stack.enter_context(_without_cache(dense))
        stack.enter_context(_without_cache(pruned))
        for goal in goals:
            stack.callback(pause_before(goal.modules[0]))
        for target in dict.fromkeys(goal.target for goal in goals):
            stack.callback(pause_after(dense.get_submodule(module_paths(target)[-1])))
        originals = stack.enter_context(in_lockstep(dense, inputs))
        copies = stack.enter_context(in_lockstep(pruned, inputs))
        for goal in tqdm(goals, desc="reconstruct", unit="layer", disable=None):
            first = channels_first(goal.modules)
            samples = []
            for one, other, mask in zip(originals, copies, masks, strict=True):
                samples.append(_sample(goal, one, other, mask, first))
            seen, unseen = samples[: len(fitting)], samples[len(fitting) :]
            results.append(_refit(goal, seen, unseen, first, method, ridge, steps, shared))
    return results


def _order(dense: nn.Module, plan: Plan, inputs: Any) -> list[str]:
    """Order the layers of a plan as they run."""
    order: list[str] = []
    handles = [
        dense.get_submodule(module_paths(name)[0]).register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name in (*plan.kept, *plan.removed)
    ]
    run_hooked(dense, inputs, handles)
    return order


def _goals(order: Sequence[str], counterparts: dict[str, nn.Module], plan: Plan, scope: str) -> list[_Goal]:
    """List the kept layers to refit, each with its modules and its target."""
    removed = set(plan.removed)
    gap = next((i for i, name in enumerate(order) if name in removed), len(order))
    goals = []
    for i, name in enumerate(order):
        if name in removed:
            continue
        last = i
        while last + 1 < len(order) and order[last + 1] in removed:
            last += 1
        if last == i and (i < gap or scope == "gaps"):
            continue
        goals.append(_Goal(name, [counterparts[path] for path in module_paths(name)], order[last]))
    return goals


def _counterparts(dense: nn.Module, pruned: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """Map the paths of kept modules in the dense network to the modules of the pruned network.

    Surgery keeps the order of modules: it renumbers lists, and replaces modules that are called by name by identities.
    """
    kept = {
        path: module
        for path, module in dense.named_modules()
        if not isinstance(module, PassThrough)
        and not any(path == removed or path.startswith(f"{removed}.") for removed in plan.removed_modules)
    }
    counterparts = [module for module in pruned.modules() if not isinstance(module, PassThrough)]
    if [type(module) for module in kept.values()] != [type(module) for module in counterparts]:
        raise PlanError(f"this {type(pruned).__name__} is not what the plan makes of the dense network: prune it anew")
    return dict(zip(kept, counterparts, strict=True))


def _split(inputs: list) -> tuple[list, list]:
    """Split batches into those to fit on and the held-out last eighth."""
    if len(inputs) < PARTS:
        samples = sum(size_of(one) for one in inputs)
        parts = min(PARTS, samples)
        size = -(-samples // parts)
        inputs = [one for one, _ in rebatch([(one, None) for one in inputs], samples, size)]
    count = max(1, len(inputs) // PARTS)
    return (inputs[:-count], inputs[-count:]) if len(inputs) > 1 else (inputs, inputs)


def _sample(goal: _Goal, one: Pass, other: Pass, mask: Tensor | None, first: bool) -> _Sample:
    """Advance both networks to a layer."""
    output = one.advance()
    args, kwargs = other.advance()
    # Copies: what follows may work in place.
    target = rows(first_tensor(output), first).clone()
    args, kwargs = _detached(args), _detached(kwargs)
    return _Sample(partial(_run, goal.modules, args, kwargs), target, row_weights(target, mask))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_detached(item) for item in value)
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return value


def _run(modules: Sequence[nn.Module], args: tuple, kwargs: dict) -> Any:
    """Run a layer; a run of siblings one after another."""
    output = modules[0](*_detached(args), **kwargs)  # a layer may work in place
    for module in modules[1:]:
        output = module(output)
    return output


def _refit(
    goal: _Goal,
    seen: list[_Sample],
    unseen: list[_Sample],
    first: bool,
    method: str,
    ridge: float,
    steps: int,
    shared: set[nn.Parameter],
) -> Reconstructed:
    with torch.no_grad():
        gradient.refresh_statistics(goal.modules, [sample.run for sample in (*seen, *unseen)])
        before = _error(unseen, first)
        found = None if method == "gradient" else last_linear_map(goal.modules, seen[0].run)
        if found is not None and found.get_parameter("weight") in shared:
            found = None
        tied = any(p in shared for module in goal.modules for p in module.parameters())
        how = "closed_form" if found is not None else "" if method == "closed_form" or tied or not steps else "gradient"
        if not how:
            return Reconstructed(goal.name, goal.target, "", before, before, False)
        states = [copy.deepcopy(module.state_dict()) for module in goal.modules]
        if found is not None:
            change = least_squares((_equations(found, sample, first) for sample in seen), ridge)
            weight = weight_of(found)
            weight.copy_((weight.double() + change).to(weight.dtype))
        else:
            gradient.fit(goal.modules, seen, first, steps)
            gradient.refresh_statistics(goal.modules, [sample.run for sample in (*seen, *unseen)])
        after = _error(unseen, first)
        kept = after < before
        if not kept:
            for module, state in zip(goal.modules, states, strict=True):
                module.load_state_dict(state)
    return Reconstructed(goal.name, goal.target, how, before, after, kept)


def _equations(linear: nn.Module, sample: _Sample, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (H, R, w) of a batch for `least_squares`."""
    given: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    try:
        output = rows(first_tensor(sample.run()), first)
    finally:
        handle.remove()
    return rows(given[0], False), sample.target.double() - output.double(), sample.weights


def _error(samples: Sequence[_Sample], first: bool) -> float:
    total, count = 0.0, 0.0
    for sample in samples:
        error, weighed = relative_error(rows(first_tensor(sample.run()), first), sample.target, sample.weights)
        total += error
        count += weighed
    return total / count if count else 0.0


def _shared_parameters(network: nn.Module) -> set[nn.Parameter]:
    """Find parameters that several modules have: a change in one layer would change another."""
    seen: set[nn.Parameter] = set()
    shared: set[nn.Parameter] = set()
    for _, parameter in network.named_parameters(remove_duplicate=False):
        (shared if parameter in seen else seen).add(parameter)
    return shared


@contextmanager
def _without_cache(network: nn.Module):
    """Disable the cache of keys and values of a Hugging Face model: every run of a layer would add to it."""
    config = getattr(network, "config", None)
    uses = getattr(config, "use_cache", None)
    if config is None or uses is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = uses
