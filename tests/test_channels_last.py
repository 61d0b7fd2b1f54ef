"""Training with the channels last: the same training, and what can't be trained so is trained as it is."""

import copy

import pytest
import torch
from torch import nn

import sglp
from sglp.tasks.trainer.channels_last import channels_last

INPUTS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


class Flattening(nn.Module):
    """Goes on by `flatten`, which takes any order of memory, or by `view`, which does not."""

    def __init__(self, by_view: bool):
        super().__init__()
        self.by_view, self.first, self.last = by_view, nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

    def forward(self, images):
        values = self.first(images).relu()
        return self.last(values.view(len(values), -1) if self.by_view else values.flatten(1))


def resnet() -> nn.Module:
    return sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8, "num_classes": 5}, seed=0).train()


def steps(network: nn.Module, inputs=INPUTS) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [resnet, lambda: Flattening(False)])
def test_training_with_the_channels_last_is_the_same_training(make):
    network, inputs = make().double(), INPUTS.double()
    plain = copy.deepcopy(network)
    steps(plain, inputs)
    before, random = list(network.parameters()), torch.get_rng_state()
    with channels_last(network, inputs):
        assert torch.equal(random, torch.get_rng_state())
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert first.weight.is_contiguous(memory_format=torch.channels_last)
        assert not first.weight.is_contiguous()
        steps(network, inputs)
        assert all(tensor.is_contiguous() for tensor in network.state_dict().values())
    assert all(a is b and a.is_contiguous() for a, b in zip(before, network.parameters(), strict=True))
    for name, value in plain.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("make", [lambda: Flattening(True), lambda: nn.Linear(8, 5)])
def test_what_has_no_convolutions_or_needs_its_order_of_memory_stays_as_it_is(make):
    network, random = make(), torch.get_rng_state()
    state = copy.deepcopy(network.state_dict())
    with channels_last(network, INPUTS):
        assert all(parameter.is_contiguous() and parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_trial_leaves_nothing_in_the_network():
    network = resnet()
    state = copy.deepcopy(network.state_dict())
    with channels_last(network, INPUTS):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
