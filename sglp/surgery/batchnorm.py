"""Running statistics of batch norms, which no longer fit the network after layers are removed."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.running import call, device_of


def has_statistics(network: nn.Module) -> bool:
    """Check whether a network has batch norms with running statistics."""
    return bool(norms_of(network))


def recalibrate(network: nn.Module, batches: Iterable) -> None:
    """Replace the running statistics of all batch norms by their means over batches, in place.

    Only batch norms run in train mode, as dropout and stochastic depth would add noise to the statistics;
    `torch.optim.swa_utils.update_bn` runs the whole network in train mode.

    Args:
        network: the network; in eval mode afterwards.
        batches: tensors or dicts of keyword arguments, or pairs of such inputs and a target.

    Raises:
        ScoringError: there is no batch. After this or any other error, the statistics are unchanged.
    """
    network.eval()
    norms = norms_of(network)
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    device = device_of(network)
    try:
        with averaging(norms):
            for batch in at_least_one(batches, "compute the statistics of batch norms from"):
                with torch.no_grad():
                    call(network, to_device(inputs_of(batch), device))
        for norm, state in zip(norms, before, strict=True):
            if not norm.num_batches_tracked:  # the norm runs only in training, such as in an auxiliary head
                norm.load_state_dict(state)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise


@contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Make batch norms average their statistics over all batches that run inside a context; in eval mode afterwards."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # weights all batches equally
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


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
