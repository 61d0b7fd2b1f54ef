"""A few steps of Adam on the parameters of one layer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.distributed.all_reduce import all_reduce_sum
from sglp.reconstruction.rows import rows
from sglp.running import first_tensor
from sglp.surgery.batchnorm import averaging, norms_of
from sglp.surgery.pooled_statistics import RunningForSingleValues

Batch = tuple[Callable[[], Any], Tensor, Tensor]  # runs the layer; target rows; row weights
WITH_BATCH_NORM, WITHOUT = 3e-3, 5e-4  # learning rates


def fit(modules: Sequence[nn.Module], batches: Sequence[Batch], first: bool, steps: int) -> None:
    """Fit a layer to targets, in place, with a cosine schedule; each step uses the next batch.

    Batch norms run in train mode, all other modules in eval mode. Running statistics are spoilt: refresh them.
    """
    norms = _batch_norms(modules)
    parameters = [p for module in modules for p in module.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=WITH_BATCH_NORM if norms else WITHOUT)
    rate = optimizer.param_groups[0]["lr"]
    try:
        for norm in norms:
            norm.train()
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), RunningForSingleValues():
            for step in range(steps):
                run, target, weights = batches[step % len(batches)]
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                output = rows(first_tensor(run()), first)
                count = all_reduce_sum((weights > 0).sum())
                loss = ((output - target).float().square().sum(dim=-1) * weights).sum() / count
                optimizer.zero_grad()
                loss.backward()
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad = all_reduce_sum(parameter.grad)
                optimizer.step()
    finally:
        for norm in norms:
            norm.eval()
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)


def refresh_statistics(modules: Sequence[nn.Module], runs: Sequence[Callable[[], Any]]) -> None:
    """Replace the running statistics of a layer's batch norms by those of all samples."""
    norms = _batch_norms(modules)
    with averaging(norms):
        for run in runs if norms else ():
            run()


def _batch_norms(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    return [norm for module in modules for norm in norms_of(module)]
