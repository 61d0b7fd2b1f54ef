"""Tournament: let three methods propose a plan each, reconstruct each plan, and take the one with the lowest loss.

The methods are `sglp`, `reconstruction_error` and `block_influence`; `sglp` uses the criterion `fitted_loss` in place
of `reconstruction_error`. Each proposed plan is carried out and its kept layers are refitted on three quarters of the
batches (see `sglp.reconstruct`); a layer that has no closed form takes 20 steps. The score of a plan is minus the loss
on the last quarter, which needs targets. In scores.csv, the column search names the method, and every segment has the
score of the whole plan. Equal plans are tried once.

Source: this project. Candidates that are compared after a cheap repair are also in EvoPress (arXiv 2410.14649), without
the repair.
Cost: forward `C * B + 2 * B + 1`, backward `0` for the proposals, with C as for `sglp`. Each different plan takes a
reconstruction on top: a forward pass of the network and of the pruned one on the batches, the refits, and the loss.
Use: where a single method is not known to be good for the network, and some minutes are affordable. It can be no worse
than its methods but for the noise of the loss on the last quarter.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sglp.batches import at_least_one, inputs_of, rebatch
from sglp.cutting import can_be_cut, size_of
from sglp.errors import BudgetError, ScoringError
from sglp.layer import Layer
from sglp.loss import Loss, cross_entropy, labelled, loss_of
from sglp.plan import Plan
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.reconstruction.reconstruct import reconstruct
from sglp.running import call, eval_mode
from sglp.scores import SetScore
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.scoring.criteria.reconstruction_error import ReconstructionError
from sglp.scoring.methods import ERRORS, find_method, takes
from sglp.scoring.ranking import check_keep
from sglp.surgery.prune import prune

PROPOSALS = ("sglp", "reconstruction_error", "block_influence")
PARTS = 4  # one of which measures the loss
STEPS = 20


def tournament(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
    *,
    reconstruction_batches: Iterable | None = None,
    errors: np.ndarray | None = None,
    loss: Loss = cross_entropy,
    **options: Any,
) -> tuple[Plan, list[SetScore]]:
    """Return the proposed plan with the lowest loss after reconstruction.

    Args:
        network, layers, segments, similarity, batches, keep, seed: as for every method; see `sglp.scoring.methods`.
        reconstruction_batches: pairs (inputs, target) to refit layers on and to measure the loss on; default:
            `batches`.
        errors: see `reconstruction_error`; by default they are measured on the batches that layers are refitted on.
        loss: called as loss(output, target).
        options: of the method sglp.

    Raises:
        BudgetError: see `check_keep`.
        ScoringError: there are fewer than two samples, or no loss is finite.
    """
    check_keep(layers, keep)
    batches = list(batches)
    fitting, held = _split(batches if reconstruction_batches is None else list(reconstruction_batches))
    if errors is None:
        errors = reconstruction_errors(network, layers, fitting)
    if takes(options.get("criterion", ReconstructionError), ERRORS):  # that plan is proposed anyway
        options = options | {"criterion": FittedLoss}
    own_options: dict[str, dict[str, Any]] = {
        "sglp": options | {"loss": loss},
        "reconstruction_error": {"errors": errors},
    }
    proposed: dict[frozenset[str], tuple[str, Plan]] = {}
    for name in PROPOSALS:
        method = find_method(name)
        with suppress(BudgetError):  # sglp keeps a layer of each segment, the others need not
            plan, _ = method(network, layers, segments, similarity, batches, keep, seed, **own_options.get(name, {}))
            proposed.setdefault(frozenset(plan.removed), (name, plan))
    losses = {}
    for name, plan in tqdm(proposed.values(), desc="tournament", unit="plan", disable=None):
        pruned = prune(network, plan).eval()
        reconstruct(network, pruned, plan, fitting, steps=STEPS)
        losses[name] = _mean_loss(pruned, held, loss)
    best = min(losses, key=lambda name: losses[name])
    if not np.isfinite(losses[best]):
        raise ScoringError(f"no plan has a finite loss after reconstruction: {losses}")
    rows = [
        SetScore(
            segment,
            tuple(i for i in range(first, last + 1) if layers[i].name in set(plan.kept)),
            -losses[name],
            name,
            name == best,
        )
        for segment, (first, last) in enumerate(segments)
        for name, plan in proposed.values()
    ]
    return next(plan for name, plan in proposed.values() if name == best), rows


def _split(batches: list) -> tuple[list, list]:
    """Split batches, or their samples where there are few, into those to fit on and those to measure the loss on."""
    batches = list(at_least_one(batches))
    if len(batches) < PARTS and all(can_be_cut(inputs_of(batch)) for batch in batches):
        samples = sum(size_of(inputs_of(batch)) for batch in batches)
        if samples < 2:
            raise ScoringError("a tournament needs at least two samples: some to fit on, others to measure the loss on")
        batches = list(rebatch(batches, samples, -(-samples // min(PARTS, samples))))
    count = max(1, len(batches) // PARTS)
    return (batches[:-count], batches[-count:]) if len(batches) > 1 else (batches, batches)


def _mean_loss(network: nn.Module, batches: list, loss: Loss) -> float:
    losses = []
    with eval_mode(network), torch.no_grad():
        for inputs, target in labelled(network, batches, loss):
            losses.append(float(loss_of(loss, call(network, inputs), target)))
    return sum(losses) / len(losses)
