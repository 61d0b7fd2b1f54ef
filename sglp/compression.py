"""The whole way from a trained network to a smaller one, in a script: what the pipeline's stages do, one after another.

Source: SGLP (arXiv 2410.14720). The same dials and samples give the network of `dvc repro`, to the bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sglp.activations import gram_matrices
from sglp.batches import even_slices, first_sample, first_samples, rebatch, to_device
from sglp.budget import check_removable, check_target, layers_to_keep
from sglp.choices import Pooling
from sglp.cka import cka_matrix
from sglp.discovery.find_layers import find_layers
from sglp.errors import ScoringError, SGLPError, first_line
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy
from sglp.plan import Plan
from sglp.running import call, device_of, eval_mode, logits_of, seeded
from sglp.scores import LayerScore, SetScore
from sglp.scoring.combinations import SEARCH, check_search
from sglp.scoring.methods import check_shared, find_criterion, find_method
from sglp.segmentation import equal_segments, number_of_segments, segmentation_table
from sglp.surgery.batchnorm import has_statistics, recalibrate
from sglp.surgery.equivalence import check_pruned
from sglp.surgery.prune import prune
from sglp.target import RemainingCost, search_keep_count

CRITERION = "fitted_loss"  # the default
OPTIONS = ("search", "budget", "random_inits", "max_combinations", "max_evaluations", "beam_width")


class Compressed(NamedTuple):
    """A smaller network, and the way to it.

    Attributes:
        network: an ordinary module in eval mode; it shares nothing with the dense one. Train it on.
        plan: the layers that stayed and those that went, by name.
        layers: all layers of the dense network.
        similarity: [layers, layers] CKA.
        segments: inclusive (first, last) numbers of layers.
        scores: what the method asked about, and what it found.
        left: the share of the target's cost that is left; None without a target.
    """

    network: nn.Module
    plan: Plan
    layers: list[Layer]
    similarity: np.ndarray
    segments: list[tuple[int, int]]
    scores: list[SetScore] | list[LayerScore]
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
    pooling: Pooling = "flatten",
    paths: str | Sequence[str] | None = None,
    **options,
) -> Compressed:
    """Remove whole layers from a trained network: those that others like them can stand in for.

    The first samples of `batches` are all that is looked at, and kept in memory; how they come in batches makes no
    difference. They should be of the training data, in random order.

    Args:
        model: the trained network, left as it was; it runs where its parameters are.
        batches: pairs (inputs, target), as of a DataLoader; inputs are a tensor, or a dict of arguments.
        loss: of logits and target. Criteria other than the default are given what the network returns.
        k: number of segments, or "auto".
        prune_ratio: share of the removable layers that goes; not used with a target.
        target: how much of the dense network may be left, one of {"macs": 0.5}, {"parameters": 0.5}, {"latency": 0.5}
            (of a sample's forward pass, the one thing here that differs from run to run). As many layers stay as that
            allows.
        method: "sglp", a rival of docs/methods.md, or "package.module:function".
        criterion: what picks the layers of a segment, a name of docs/methods.md or "package.module:callable".
        seed: of whatever is drawn; of a loader that shuffles, too.
        calibration: how many samples similarity is measured on, and how many at a time.
        scoring: how many samples plans are scored on, and how many at a time; what takes longest is done on these.
        recalibration: how many samples batch norm takes its new statistics from, and how many at a time; 0 leaves them.
            Networks without batch norm need none.
        pooling: what is compared of activations; see `gram_matrices`. For texts "mean" is usual.
        paths: of the modules that are layers; see `find_layers`.
        options: `search`, `budget`, `random_inits`, `max_combinations`, `max_evaluations`, `beam_width` of the method sglp.

    Raises:
        SGLPError: something can't be as it is asked; the message says what, and what would be right.
    """
    way = find_method(method)
    goal = None if target is None else check_target(target, options.get("budget"))
    options = _options(method, criterion, loss, options)
    sizes = _sizes(calibration=calibration, scoring=scoring, recalibration=recalibration)
    if not has_statistics(model):
        del sizes["recalibration"]
    with seeded(seed, device_of(model)):
        samples = first_samples(batches, {name: number for name, (number, _) in sizes.items()})
        scored = list(rebatch(samples, *sizes["scoring"]))
        if criterion == CRITERION and method == "sglp":
            _check_loss(model, scored[0], loss)

        example = to_device(first_sample(samples[0][0]), device_of(model))
        layers = find_layers(model, example, paths=paths)
        check_removable(layers)
        keep = layers_to_keep([layer.removable for layer in layers], prune_ratio)
        equal_segments(len(layers), 1 if k == "auto" else k)  # an impossible k is told now

        shown = tqdm(list(rebatch(samples, *sizes["calibration"])), desc="similarity", unit="batch", disable=None)
        names = [layer.name for layer in layers]
        similarity = cka_matrix(gram_matrices(model, layers, shown, pooling), names=names).numpy()

        table = segmentation_table(similarity)
        segments = table.segments(number_of_segments(k, table.losses, method))

        def ask(keep: int) -> tuple[Plan, list[SetScore] | list[LayerScore]]:
            try:
                return way(model, layers, segments, similarity, scored, keep, seed, **options)
            except (SGLPError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # of a network's output that has no logits, of a method or a criterion of yours
                raise ScoringError(f"method={method} can't score this network: {first_line(error)}") from error

        if goal is None:
            (plan, scores), left = ask(keep), None
        else:
            of, share = goal
            plan, scores, left = search_keep_count(share, RemainingCost(of, model, layers, example), ask, segments)

        network = prune(model, plan).eval()
        check_pruned(model, plan, network, example)
        if sizes.get("recalibration", (0,))[0]:
            recalibrate(network, rebatch(samples, *sizes["recalibration"]))
    return Compressed(network, plan, layers, similarity, segments, scores, left)


def _options(method: str, criterion: str, loss: Loss, options: dict) -> dict:
    """What the method is given besides what all are."""
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise SGLPError(f"compress takes no {unknown[0]}; besides its own arguments it takes {', '.join(OPTIONS)}")
    if method == "sglp":
        search, found = options.get("search", SEARCH), find_criterion(criterion)
        check_search(search, found)
        check_shared(options.get("budget"), search)
        return options | {"criterion": found, "loss": loss}
    given = [*options, *["criterion"] * (criterion != CRITERION), *["loss"] * (loss is not cross_entropy)]
    if given:
        raise SGLPError(f"method={method} takes no {given[0]}: only sglp does")
    return {}


def _sizes(**sizes) -> dict[str, tuple[int, int]]:
    """Samples, and how many at a time, by what they are for."""
    for name, size in sizes.items():
        pair = isinstance(size, tuple | list) and len(size) == 2 and all(type(number) is int for number in size)
        fewest = 4 if name == "calibration" else 1
        unused = pair and name == "recalibration" and size[0] == 0
        if not pair or (min(size) < fewest and not unused):
            raise SGLPError(
                f"{name}={size} is wrong: it must be how many samples, and how many at a time, as (64, 16), each "
                f"{fewest} or more"
            )
        smallest = fewest if unused else min(part.stop - part.start for part in even_slices(*size))
        if smallest < fewest:
            raise SGLPError(
                f"{name}={size} is wrong: of its batches the smallest has {smallest} samples, and CKA needs {fewest}"
            )
    return sizes


def _check_loss(model: nn.Module, batch: tuple, loss: Loss) -> None:
    """Check that there is a loss of what the network makes of a batch."""
    inputs, target = to_device(batch, device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            float(loss(logits_of(call(model, inputs)), target))
    except Exception as error:  # whatever a network or a loss raises, the user needs one sentence
        raise ScoringError(f"the loss of the network's output can't be computed: {first_line(error)}") from error
