"""Running statistics of batch norms, which no longer fit the network after layers are removed."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.batches import at_least_one
from sglp.errors import ScoringError
from sglp.running import call, inputs_for
from sglp.surgery.pooled_statistics import PooledStatistics


def has_statistics(network: nn.Module) -> bool:
    """Check whether a network has batch norms with running statistics."""
    return bool(norms_of(network))


def recalibrate(network: nn.Module, batches: Iterable) -> None:
    """Replace the running statistics of all batch norms by those of the samples of all batches, in place.

    Every sample has the same weight, whatever the sizes of the batches, and the variance includes the one between
    batches. Each batch is normalised by the statistics of itself and the batches before it. Only batch norms run in
    train mode, as dropout and stochastic depth would add noise to the statistics; `torch.optim.swa_utils.update_bn`
    runs the whole network in train mode, and gives all batches the same weight.

    Args:
        network: the network; in eval mode afterwards.
        batches: inputs (a tensor, a dict of keyword arguments, a tuple of arguments), or pairs of inputs and a target.

    Raises:
        ScoringError: there is no batch, or only one value per channel, which has no variance. After this or any other
            error, the statistics are unchanged.
    """
    network.eval()
    norms = norms_of(network)
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    try:
        with averaging(norms):
            for batch in at_least_one(batches, "compute the statistics of batch norms from"):
                with torch.no_grad():
                    call(network, inputs_for(network, batch))
        for norm, state in zip(norms, before, strict=True):
            if not norm.num_batches_tracked:  # the norm runs only in training, such as in an auxiliary head
                norm.load_state_dict(state)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise


@contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Give batch norms the statistics of all samples that run inside a context; in eval mode afterwards.

    Raises:
        ScoringError: at the end, if a norm got a single value per channel, which has no variance.
    """
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        with PooledStatistics(norms) as statistics:
            yield
    finally:
        for norm in norms:
            norm.eval()
    if any(pool.count == 1 for pool in statistics.pools.values()):
        raise ScoringError(
            "batch norm needs at least two values per channel, but all batches together have one: give more samples"
        )


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norms use the batch's statistics in eval mode inside a context; running statistics are unchanged."""
    saved = [(norm, norm.running_mean, norm.running_var) for norm in norms_of(network)]
    try:
        for norm, _, _ in saved:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in saved:
            norm.running_mean = mean
            norm.running_var = variance


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
