"""Compress a trained network in one call: the stages of the pipeline, one after another, as a library function.

Source: SGLP (arXiv 2410.14720). The same parameters and samples give the pruned network of `dvc repro`, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sglp.activations import gram_matrices
from sglp.arguments import as_arguments
from sglp.batches import first_samples, rebatch, to_device, whole_if_needed
from sglp.budget import check_removable, check_target, layers_to_keep
from sglp.checks import check_arguments, check_sizes
from sglp.choices import Pooling, runs_sglp
from sglp.cka import cka_matrix
from sglp.cutting import first_sample
from sglp.discovery.find_layers import find_layers
from sglp.errors import ScoringError, SGLPError, first_line
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.reconstruction.reconstruct import Reconstructed
from sglp.reconstruction.reconstruct import reconstruct as refit_layers
from sglp.running import check_float64, device_of, seeded
from sglp.scores import LayerScore, SetScore
from sglp.scoring.combinations import SEARCH, check_search
from sglp.scoring.methods import (
    ERRORS,
    RECONSTRUCTION_BATCHES,
    check_search_budget,
    find_criterion,
    find_method,
    takes,
    with_errors,
)
from sglp.segmentation import equal_segments, number_of_segments, segmentation_table
from sglp.surgery.batchnorm import has_statistics, recalibrate
from sglp.surgery.equivalence import check_pruned
from sglp.surgery.prune import prune
from sglp.target import RemainingCost, search_keep_count
from sglp.trial_passes import check_loss, check_runs, gives_the_same

CRITERION = "reconstruction_error"  # the default
OPTIONS = ("search", "budget", "random_inits", "max_combinations", "max_evaluations", "beam_width")


class Compressed(NamedTuple):
    """A smaller network, with the plan and the measurements that led to it.

    Attributes:
        network: an ordinary module in eval mode, which shares no parameters with the dense network. Fine-tune it next.
        plan: the names of the kept and the removed layers.
        layers: all layers of the dense network.
        similarity: [layers, layers] CKA.
        segments: inclusive (first, last) layer indices.
        scores: the sets of layers, or single layers, that the method scored.
        reconstructed: what happened to each kept layer from the first gap on; empty without reconstruction.
        left: the remaining share of the target's cost; None without a target.
    """

    network: nn.Module
    plan: Plan
    layers: list[Layer]
    similarity: np.ndarray
    segments: list[tuple[int, int]]
    scores: list[SetScore] | list[LayerScore]
    reconstructed: list[Reconstructed]
    left: float | None


def compress(
    model: nn.Module,
    batches: Iterable,
    *,
    loss: Loss = cross_entropy,
    k: int | Literal["auto"] = 3,
    prune_ratio: float = 0.5,
    target: Mapping[str, float] | None = None,
    method: str = "sglp",
    criterion: str = CRITERION,
    seed: int = 0,
    calibration: tuple[int, int] = (512, 128),
    scoring: tuple[int, int] = (64, 64),
    recalibration: tuple[int, int] = (512, 128),
    reconstruct: bool = True,
    reconstruction: tuple[int, int] | None = None,
    pooling: Pooling = "flatten",
    paths: str | Sequence[str] | None = None,
    **options: Any,
) -> Compressed:
    """Remove whole layers from a trained network, choosing layers that similar layers can make up for.

    Only the first samples of `batches` are read and kept in memory: the largest of the sample counts below. The batch
    size of `batches` does not affect the result. Use training data in random order.

    Args:
        model: the trained network; left unchanged. It runs on the device of its parameters.
        batches: pairs (inputs, target), for example a DataLoader. Inputs are a tensor, a dict of keyword arguments, a
            tuple of arguments, or one argument of any other kind. A tensor with one row for each sample is cut into
            batches of other sizes; any other one, such as position ids [1, tokens], is passed on whole. Batches whose
            tensors can't be cut (edges of graphs, packed patches) are used as they are. Tokens that an attention mask
            [samples, tokens] hides count nowhere.
        loss: for criteria that need one; the default criterion uses neither a loss nor targets. It is called as
            loss(output, target) with what the network returns; "fitted_loss" scales the logits in it. A loss that can't
            take an output object of transformers is called with its logits.
        k: number of segments, or "auto".
        prune_ratio: share of the removable layers to remove; ignored if there is a target.
        target: the share of the dense network's cost that may remain: {"macs": 0.5}, {"parameters": 0.5} or
            {"latency": 0.5} (of one sample's forward pass; the only result that varies between runs). As many layers
            are kept as the target allows.
        method: "sglp", a baseline of docs/methods.md, or "package.module:function".
        criterion: scores the layers of a segment: a name in docs/methods.md or "package.module:callable".
        seed: for every random draw, including those of a shuffling loader.
        calibration: (number of samples, batch size) to measure similarity on.
        scoring: (number of samples, batch size) to score plans on; most of the time is spent on these.
        recalibration: (number of samples, batch size) to recompute batch-norm statistics from; 0 samples keeps the old
            statistics. Ignored for networks without batch norm.
        reconstruct: whether the kept layers are refitted to the dense network's activations; see `sglp.reconstruct`,
            which has further parameters.
        reconstruction: (number of samples, batch size) to refit layers on, an eighth of which is held out; default: as
            `calibration`.
        pooling: how activations are pooled before they are compared; see `gram_matrices`. "mean" is usual for texts.
        paths: of the modules that are layers; see `find_layers`.
        options: `search`, `budget`, `random_inits`, `max_combinations`, `max_evaluations` and `beam_width` of the
            method sglp.

    Raises:
        SGLPError: an argument is wrong or does not fit the network; the message says what would be right.
    """
    check_arguments(
        model,
        loss=loss,
        k=k,
        prune_ratio=prune_ratio,
        method=method,
        criterion=criterion,
        seed=seed,
        pooling=pooling,
        paths=paths,
        options=options,
    )
    check_float64(device_of(model))
    k, seed, prune_ratio = (k if k == "auto" else int(k)), int(seed), float(prune_ratio)
    run_method = find_method(method)
    cost_limit = None if target is None else check_target(target, options.get("budget"))
    options = _method_options(method, run_method, criterion, loss, options)
    sizes = check_sizes(
        calibration=calibration,
        scoring=scoring,
        recalibration=recalibration,
        reconstruction=calibration if reconstruction is None else reconstruction,
    )
    if not has_statistics(model):
        del sizes["recalibration"]
    needs_errors = takes(run_method, ERRORS) or takes(options.get("criterion", run_method), ERRORS)
    if not (reconstruct or needs_errors or takes(run_method, RECONSTRUCTION_BATCHES)):
        del sizes["reconstruction"]
    with seeded(seed, device_of(model)):
        named = (name for name in sizes if name != "reconstruction" or reconstruction is not None)
        samples = first_samples(batches, {name: sizes[name][0] for name in named}, partial(as_arguments, model))
        samples = whole_if_needed(samples, partial(gives_the_same, model))
        scoring_batches = list(rebatch(samples, *sizes["scoring"]))
        example = to_device(first_sample(samples[0][0]), device_of(model))
        check_runs(model, example)
        if (criterion == "fitted_loss" and runs_sglp(method)) or takes(run_method, "loss"):
            check_loss(model, scoring_batches[0], loss)

        layers = find_layers(model, example, paths=paths)
        check_removable(layers)
        keep = layers_to_keep([layer.removable for layer in layers], prune_ratio)
        equal_segments(len(layers), 1 if k == "auto" else k)  # refuses an impossible k before any long work

        calibration_batches = list(rebatch(samples, *sizes["calibration"]))
        shown = tqdm(calibration_batches, desc="similarity", unit="batch", disable=None)
        names = [layer.name for layer in layers]
        similarity = cka_matrix(gram_matrices(model, layers, shown, pooling), names=names).numpy()

        table = segmentation_table(similarity)
        segments = table.segments(number_of_segments(k, table.losses, method))

        if takes(run_method, RECONSTRUCTION_BATCHES):
            options[RECONSTRUCTION_BATCHES] = list(rebatch(samples, *sizes["reconstruction"]))
        if needs_errors:
            errors = reconstruction_errors(model, layers, rebatch(samples, *sizes["reconstruction"]))
            options = with_errors(run_method, options, errors)

        def plan_for(keep: int) -> tuple[Plan, list[SetScore] | list[LayerScore]]:
            try:
                return run_method(model, layers, segments, similarity, scoring_batches, keep, seed, **options)
            except (SGLPError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # an output without logits, or an error in the user's own method or criterion
                raise ScoringError(f"method={method} can't score this network: {first_line(error)}") from error

        remaining = None
        if cost_limit is None:
            plan, scores = plan_for(keep)
        else:
            kind, share = cost_limit
            cost = RemainingCost(kind, model, layers, example)
            plan, scores, remaining = search_keep_count(share, cost, plan_for, segments)

        network = prune(model, plan).eval()
        check_pruned(model, plan, network, example)
        if sizes.get("recalibration", (0,))[0]:
            recalibrate(network, rebatch(samples, *sizes["recalibration"]))
        reconstructed = []
        if reconstruct:
            reconstructed = refit_layers(model, network, plan, rebatch(samples, *sizes["reconstruction"]))
    return Compressed(network, plan, layers, similarity, segments, scores, reconstructed, remaining)


def _method_options(
    method: str, run_method: Callable, criterion: str, loss: Loss, options: dict[str, Any]
) -> dict[str, Any]:
    """Check the method-specific arguments and return those to call the method with."""
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise SGLPError(f"compress has no parameter {unknown[0]}; the options of method=sglp are {', '.join(OPTIONS)}")
    if runs_sglp(method):
        search, criterion_class = options.get("search", SEARCH), find_criterion(criterion)
        check_search(search, criterion_class)
        check_search_budget(options.get("budget"), search)
        return options | {"criterion": criterion_class, "loss": loss}
    unsupported = [*options, *["criterion"] * (criterion != CRITERION)]
    if unsupported:
        raise SGLPError(f"method={method} has no parameter {unsupported[0]}: only method=sglp has it")
    if takes(run_method, "loss"):
        return {"loss": loss}
    if loss is not cross_entropy:
        raise SGLPError(f"method={method} computes no loss: leave out loss, or use sglp, loss_greedy or taylor")
    return {}
