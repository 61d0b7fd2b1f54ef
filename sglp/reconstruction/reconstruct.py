"""Refit each kept layer to the activation that the dense network has at its place.

The dense and the pruned network advance together. In order of depth, each kept layer from the first gap on gets the
input that the pruned network, reconstructed so far, gives it. Its target is the dense network's activation after the
removed layers that follow it. No labels are needed. Where the layer is affine in its last linear map, the best weight
has a closed form; elsewhere a few steps of Adam on the layer's own parameters fit it. New weights are kept only if the
error on held-out samples falls.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from sglp.batches import at_least_one, inputs_of, padding_mask, to_device
from sglp.choices import Reconstruction, Scope
from sglp.distributed.whole_batch import whole_batch
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.reconstruction.goals import Goal, counterparts_of, goals_of, shapes_of
from sglp.reconstruction.holdout import own_part, split
from sglp.reconstruction.lockstep import advance_to, in_lockstep, pause_after, pause_before
from sglp.reconstruction.prune_comp import prune_comp
from sglp.reconstruction.refit import refit, sample_of
from sglp.reconstruction.rows import channels_first
from sglp.reconstruction.safeguards import shared_parameters, without_cache
from sglp.reconstruction.saved_fits import Fit, fit_once
from sglp.running import call, device_of, hooked_eval, run_hooked
from sglp.surgery.batchnorm import averaging, norms_of

IMPLIED: dict[str, Scope] = {"replace_me": "gaps", "prune_comp": "all"}  # the scope of methods that have only one


class Reconstructed(NamedTuple):
    """What happened to a kept layer.

    Attributes:
        layer: its name in the dense network; "" with "prune_comp" for a gap before all kept layers.
        target: the dense layer after which the activation is the target.
        how: "closed_form", "gradient", "replace_me" or "prune_comp", or "" where nothing can be fitted.
        before, after: mean relative squared error on held-out samples, with the old and the new weights; for
            "prune_comp" see `Scale`.
        kept: whether the new weights are kept; always true for "replace_me" and "prune_comp".
    """

    layer: str
    target: str
    how: str
    before: float
    after: float
    kept: bool


def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    batches: Iterable,
    *,
    method: Reconstruction = "auto",
    scope: Scope = "all",
    ridge: float = 0.1,
    steps: int = 60,
    folder: Path | None = None,
) -> list[Reconstructed]:
    """Refit the kept layers of a pruned network, in place, and recompute the statistics of batch norms on the way.

    Several processes share the samples of every batch, and end with the same weights.

    Args:
        dense: the network before the removal; left as it was.
        pruned: what `sglp.prune` made of it, on the same device.
        plan: the plan between them.
        batches: calibration data: inputs, or pairs (inputs, target) whose target is not used. An eighth is held out.
            Padding tokens do not count where the inputs have an attention mask.
        method: "closed_form" fits only layers that are affine in their last linear map, "gradient" fits all layers by
            gradient, "auto" fits each layer by the closed form where there is one. "replace_me" is the baseline of
            ReplaceMe (arXiv 2505.02819) for layers right before gaps: unweighted least squares for a transform of the
            last linear map's output. As in the paper, new weights are kept even if the held-out error rises; the paper
            has a single gap. "prune_comp" is the baseline of Prune&Comp (arXiv 2507.18212) for pre-norm transformers:
            see `sglp.reconstruction.prune_comp`.
        scope: "all" kept layers from the first gap on, or only those right before "gaps", as always with
            "replace_me" and "prune_comp".
        ridge: see `least_squares`.
        steps: of Adam, for each layer that is fitted by gradient.
        folder: where refitted layers are written, so that a killed call with the same arguments goes on from them.

    Returns:
        One row for each kept layer from the first gap on, or right before gaps, in order of depth.

    Raises:
        ScoringError: there is no batch, or "prune_comp" can't scale this network.
        PlanError: the pruned network is not what the plan makes of the dense one.
    """
    counterparts = counterparts_of(dense, pruned, plan)
    inputs = [inputs_of(batch) for batch in at_least_one(batches, "reconstruct layers with")]
    shapes = shapes_of(dense, plan, inputs[0])
    goals = goals_of(shapes, counterparts, plan, IMPLIED.get(method, scope))
    if not goals:
        return []
    fitting, held = split(inputs)
    device = device_of(pruned)
    inputs = [to_device(own_part(one), device) for one in (*fitting, *held)]
    if method == "prune_comp":
        kept = {name: [counterparts[path] for path in module_paths(name)] for name in plan.kept}
        with without_cache(dense), without_cache(pruned):
            scaled = prune_comp(dense, pruned, list(shapes), kept, inputs, len(fitting))
        return [Reconstructed(name, target, *fit) for name, target, fit in scaled]
    later = _norms_after(goals, pruned, inputs[0])
    results = [
        Reconstructed(goal.name, goal.target, *fit)
        for goal, fit in _refits(
            dense, pruned, goals, inputs, len(fitting), folder, method=method, ridge=ridge, steps=steps
        )
    ]
    if later:
        with hooked_eval(pruned, ()), averaging(later), whole_batch():
            for one in inputs[: len(fitting)]:
                call(pruned, one)
    return results


def _refits(
    dense: nn.Module,
    pruned: nn.Module,
    goals: Sequence[Goal],
    inputs: list,
    fitting: int,
    folder: Path | None,
    **options: Any,
) -> Iterator[tuple[Goal, Fit]]:
    """Advance both networks from layer to layer, and refit each; the first `fitting` inputs are fitted on."""
    masks = [padding_mask(one) for one in inputs]
    shared = shared_parameters(pruned)
    with ExitStack() as stack:
        stack.enter_context(without_cache(dense))
        stack.enter_context(without_cache(pruned))
        for goal in goals:
            stack.callback(pause_before(goal.modules[0], goal.name))
        for target in dict.fromkeys(goal.target for goal in goals):
            stack.callback(pause_after(dense.get_submodule(module_paths(target)[-1]), target))
        originals = stack.enter_context(in_lockstep(dense, inputs))
        copies = stack.enter_context(in_lockstep(pruned, inputs))
        for number, goal in enumerate(tqdm(goals, desc="reconstruct", unit="layer", disable=None)):
            first = channels_first(goal.modules)
            outputs, arguments = advance_to(originals, goal.target), advance_to(copies, goal.name)
            samples = [
                sample_of(goal.modules, *given, output, mask, first)
                for output, given, mask in zip(outputs, arguments, masks, strict=True)
            ]
            fit = partial(refit, goal.modules, samples[:fitting], samples[fitting:], first, shared, **options)
            yield goal, fit_once(folder and folder / f"{number}.safetensors", goal.modules, fit)


def _norms_after(goals: Sequence[Goal], pruned: nn.Module, inputs: Any) -> list[nn.modules.batchnorm._BatchNorm]:
    """Find the batch norms outside the layers to refit that run after the first of them."""
    inside = {norm for goal in goals for module in goal.modules for norm in norms_of(module)}
    order: list[nn.Module] = []
    watched = [goals[0].modules[0], *(norm for norm in norms_of(pruned) if norm not in inside)]
    handles = [module.register_forward_pre_hook(lambda module, _: order.append(module)) for module in watched]
    run_hooked(pruned, inputs, handles)
    after = set(order[order.index(watched[0]) :])
    return [norm for norm in norms_of(pruned) if norm in after and norm not in inside]
