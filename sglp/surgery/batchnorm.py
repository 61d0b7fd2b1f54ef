"""Batch norm's statistics, which no longer fit after layers went."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.running import call, device_of


def has_statistics(network: nn.Module) -> bool:
    """Whether a network keeps running statistics."""
    return bool(_norms(network))


def recalibrate(network: nn.Module, batches: Iterable) -> None:
    """Replace the running statistics of all batch norms by their means over batches, in place.

    Only batch norm runs in train mode: dropout and stochastic depth would put noise into the statistics. Unlike
    `torch.optim.swa_utils.update_bn`, which runs the whole network in train mode.

    Args:
        network: the network; ends in eval mode.
        batches: tensors, dicts of keyword arguments, or pairs of one of them and a target.

    Raises:
        ScoringError: there is no batch; the statistics are as before, as after any other error.
    """
    network.eval()
    norms = _norms(network)
    momenta, before = [norm.momentum for norm in norms], [copy.deepcopy(norm.state_dict()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    device = device_of(network)
    try:
        for batch in at_least_one(batches, "take batch norm's statistics from"):
            with torch.no_grad():
                call(network, to_device(inputs_of(batch), device))
        for norm, state in zip(norms, before, strict=True):
            if not norm.num_batches_tracked:  # it runs in training alone, as that of an auxiliary head
                norm.load_state_dict(state)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """For a while all batch norms take the statistics of the batch, also in eval mode; the running ones stay."""
    kept = [(norm, norm.running_mean, norm.running_var) for norm in _norms(network)]
    try:
        for norm, _, _ in kept:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
