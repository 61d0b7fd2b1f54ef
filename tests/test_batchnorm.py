"""Recalibration of batch norm."""

import pytest
import torch
from torch import nn

import sglp
from sglp.errors import ScoringError
from sglp.surgery.batchnorm import batch_statistics


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


def test_dropout_does_not_affect_the_statistics(network, digits):
    noisy = nn.Sequential(nn.Dropout(0.5), network)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sglp.recalibrate(noisy, digits[0][:128].split(64))
        states.append({name: value.clone() for name, value in noisy.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_batch_statistics_are_used_inside_the_context(network, digits):
    """They are those of train mode, but dropout stays off and the running statistics do not change."""
    noisy = nn.Sequential(nn.Dropout(0.5), network)
    images = digits[0][:32]
    before = {name: value.clone() for name, value in noisy.state_dict().items()}
    with torch.no_grad():
        usual = noisy.eval()(images)
        with batch_statistics(noisy):
            outputs = noisy(images)
        assert torch.equal(noisy(images), usual)
        assert all(torch.equal(value, before[name]) for name, value in noisy.state_dict().items())
        expected = network.train()(images)
    network.eval()
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert not torch.allclose(outputs, usual, atol=1e-2)


def test_running_statistics_are_restored_after_an_error(network):
    with pytest.raises(KeyboardInterrupt), batch_statistics(network):
        raise KeyboardInterrupt
    assert network.bn1.running_mean.shape == network.bn1.running_var.shape == (16,)


def test_a_network_without_running_statistics_is_unchanged():
    network = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with batch_statistics(network):
        outputs = network(x)
    assert torch.equal(outputs, network(x))


def test_statistics_are_unchanged_without_a_batch_or_after_an_error(network, digits):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ScoringError, match=r"^there is no batch to compute the statistics of batch norms from$"):
        sglp.recalibrate(network, iter(()))
    with pytest.raises(RuntimeError):
        sglp.recalibrate(network, [digits[0][:8], digits[0][:8, :, :1, 0]])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (network.bn1.momentum, network.training) == (0.1, False)
