"""Recalibration of batch norm."""

import torch
from torch import nn

import sglp


def test_running_statistics_become_the_means_over_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 2))
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(4)]
    weights = network[2].weight.clone()
    sglp.recalibrate(network, [(batch, None) for batch in batches])
    mean = torch.stack([batch.mean(dim=0) for batch in batches]).mean(dim=0)
    variance = torch.stack([batch.var(dim=0) for batch in batches]).mean(dim=0)
    assert torch.allclose(network[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(network[1].running_var, variance, atol=1e-5)
    assert network[1].momentum == 0.3
    assert not any(module.training for module in network.modules())
    assert torch.equal(network[2].weight, weights)


def test_stochastic_depth_does_not_reach_the_statistics(network, digits):
    noisy = nn.Sequential(nn.Dropout(0.5), network)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sglp.recalibrate(noisy, digits[0][:128].split(64))
        found.append({name: value.clone() for name, value in noisy.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
