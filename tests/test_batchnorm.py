"""Recalibration of batch norm."""

import copy

import pytest
import timm
import torch
from torch import nn

import sglp
from sglp.errors import ScoringError
from sglp.surgery.batchnorm import batch_statistics, norms_of


def test_running_statistics_become_those_of_all_samples():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 2))
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(4)]
    weights = network[2].weight.clone()
    sglp.recalibrate(network, [(batch, None) for batch in batches])
    samples = torch.cat(batches)
    assert torch.allclose(network[1].running_mean, samples.mean(dim=0), atol=1e-6)
    assert torch.allclose(network[1].running_var, samples.var(dim=0), atol=1e-5)
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


def of_all(values):
    """Compute mean and unbiased variance of each channel in float64."""
    rows = values.double().movedim(1, -1).flatten(0, -2)
    return rows.mean(dim=0), rows.var(dim=0)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4)], ids=str)
@pytest.mark.parametrize("sizes", [(64, 2), (64, 1), (1,) * 66, (20, 46), (66,)], ids=lambda sizes: str(sizes[:3]))
@pytest.mark.parametrize("order", ["random", "sorted"])
def test_every_value_counts_alike_whatever_the_batches(shape, sizes, order):
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(sum(sizes), 4, *shape, generator=generator) + 5
    if order == "sorted":
        values = values.sort(dim=0).values
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(shape)](4)
    sglp.recalibrate(nn.Sequential(norm), values.split(sizes))
    mean, variance = of_all(values)
    assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-6)
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-5)
    assert int(norm.num_batches_tracked) == len(sizes)


def test_one_batch_gives_what_torch_computes_in_training(network, digits):
    expected = copy.deepcopy(network).train()
    for norm in norms_of(expected):
        norm.momentum = 1.0
    with torch.no_grad():
        expected(digits[0][:64])
    sglp.recalibrate(network, [digits[0][:64]])
    for ours, theirs in zip(norms_of(network), norms_of(expected), strict=True):
        assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-5)
        assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-4)


def test_a_small_last_batch_hardly_changes_the_statistics_of_later_norms(network, digits):
    """Normalised by itself alone, it would."""
    whole, uneven = copy.deepcopy(network), copy.deepcopy(network)
    sglp.recalibrate(whole, [digits[0][:65]])
    sglp.recalibrate(uneven, [digits[0][:64], digits[0][64:65]])
    for ours, theirs in zip(norms_of(uneven), norms_of(whole), strict=True):
        assert (ours.running_mean - theirs.running_mean).abs().max() < 0.05 * theirs.running_var.sqrt().max()


def test_a_single_value_per_channel_is_refused_and_leaves_the_statistics():
    network = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ScoringError, match="batch norm needs at least two values per channel, but all"):
        sglp.recalibrate(network, [torch.ones(1, 3)])
    assert torch.equal(network[0].running_mean, torch.zeros(3))


def test_norms_of_other_libraries_keep_their_activation():
    """timm's batch norm also computes the activation."""
    norm = timm.layers.BatchNormAct2d(3)
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    sglp.recalibrate(nn.Sequential(norm), torch.randn(8, 3, 4, 4).split(3))
    assert all((output >= 0).all() for output in seen)


@pytest.mark.parametrize("batches", [3, 16])
def test_layers_with_batch_norm_are_refitted_on_batches_of_one_sample(batches):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return x + self.inner(x)

    torch.manual_seed(0)
    dense = nn.Sequential(*[Block() for _ in range(4)]).eval()
    inputs = torch.randn(batches, 8).split(1)
    plan = sglp.Plan(("0", "1", "3"), ("2",))
    pruned = sglp.prune(dense, plan)
    rows = sglp.reconstruct(dense, pruned, plan, inputs, steps=3)
    assert [row.layer for row in rows] == ["1", "3"]
    assert all(p.isfinite().all() for p in pruned.state_dict().values())
