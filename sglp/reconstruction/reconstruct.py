"""Refit each kept layer to the activation that the dense network has at its place.

The dense and the pruned network advance together. In order of depth, each kept layer from the first gap on gets the
input that the pruned network, reconstructed so far, gives it. Its target is the dense network's activation after the
removed layers that follow it. No labels are needed. Where the layer is affine in its last linear map, the best weight
has a closed form; elsewhere a few steps of Adam on the layer's own parameters fit it. New weights are kept only if the
error on held-out samples falls.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.choices import Reconstruction, Scope
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.reconstruction.beside import beside
from sglp.reconstruction.goals import Goal, counterparts_of, goals_of, shapes_of
from sglp.reconstruction.holdout import own_part, split
from sglp.reconstruction.norms import average_statistics, norms_after
from sglp.reconstruction.prune_comp import prune_comp
from sglp.reconstruction.safeguards import without_cache
from sglp.reconstruction.saved_fits import fit_once
from sglp.reconstruction.steps import Pair, steps_of
from sglp.running import device_of

IMPLIED: dict[str, Scope] = {"replace_me": "gaps", "prune_comp": "all"}  # the scope of methods that have only one


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


class InMemory:
    """Weights that are in memory all the time. Subclasses load and store the weights of modules that are refitted."""

    def hold(self, modules: Sequence[nn.Module]) -> None:
        """Keep the weights of modules of the pruned network in memory from now on, as they are going to change."""

    def store(self, modules: Sequence[nn.Module]) -> None:
        """Take the weights of these modules as they are now."""


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
    inputs = calibration(batches)
    shapes = shapes_of(dense, plan, inputs[0])
    apart = beside(dense, list(shapes), inputs[0])
    goals = goals_of(shapes, counterparts, plan, IMPLIED.get(method, scope), apart)
    pair = Pair(dense, pruned, list(shapes), counterparts)
    if method == "prune_comp":
        return _scale(pair, plan, inputs) if goals else []
    return refit_all(pair, goals, inputs, InMemory(), folder, method=method, ridge=ridge, steps=steps)


def calibration(batches: Iterable) -> list[Any]:
    """Return the inputs of batches, and refuse an empty iterable."""
    return [inputs_of(batch) for batch in at_least_one(batches, "reconstruct layers with")]


def refit_all(
    pair: Pair, goals: Sequence[Goal], inputs: list[Any], weights: InMemory, folder: Path | None, **fit: Any
) -> list[Reconstructed]:
    """Refit layers in order of depth, and recompute the statistics of batch norms behind the first of them.

    Args:
        pair: the networks; the pruned one is changed in place.
        goals: the layers to refit.
        inputs: the batches of all processes.
        weights: of the pruned network.
        folder: see `reconstruct`.
        **fit: see `refit`.
    """
    if not goals:
        return []
    own, fitting = _own(pair, inputs)
    norms = norms_after(goals, pair.pruned, own[0])
    results = []
    for number, (goal, refit) in enumerate(steps_of(pair, goals, own, fitting, **fit)):
        weights.hold(goal.modules)
        done = fit_once(folder and folder / f"{number}.safetensors", goal.modules, refit)
        results.append(Reconstructed(goal.name, goal.target, *done))
        weights.store(goal.modules)
    if norms:
        weights.hold(norms)
        average_statistics(pair.pruned, norms, own[:fitting])
        weights.store(norms)
    return results


def _scale(pair: Pair, plan: Plan, inputs: list[Any]) -> list[Reconstructed]:
    """Run Prune&Comp."""
    own, fitting = _own(pair, inputs)
    kept = {name: [pair.counterparts[path] for path in module_paths(name)] for name in plan.kept}
    with without_cache(pair.dense), without_cache(pair.pruned):
        scaled = prune_comp(pair.dense, pair.pruned, pair.order, kept, own, fitting)
    return [Reconstructed(name, target, *fit) for name, target, fit in scaled]


def _own(pair: Pair, inputs: list[Any]) -> tuple[list[Any], int]:
    """Return this process's part of each batch, on the device, and how many of them, the first ones, to fit on."""
    fitting, held = split(inputs)
    device = device_of(pair.pruned)
    return [to_device(own_part(one), device) for one in (*fitting, *held)], len(fitting)
