"""Passes that begin where they differ give, to the bit, what whole passes give, and gradients too."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from sglp.running import backward
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.bypass import Bypass


class InPlace(nn.Module):
    """A block that changes what it is given, in place, before it adds to it."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(x.add_(0.1)), inplace=True)
        return x + self.conv(x)


class Noisy(nn.Module):
    """A residual block with dropout."""

    def __init__(self):
        super().__init__()
        self.fc, self.dropout = nn.Linear(6, 6), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.fc(x)).relu()


class Touching(nn.Module):
    """A stem, whose output is changed in place, and blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList(InPlace() for _ in range(5))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.stem(x)
        x += 1
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One activation runs in the stem, in each block and before the classifier."""

    def __init__(self, shared=True):
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.blocks = nn.Sequential(*(Activated(self.relu if shared else nn.ReLU()) for _ in range(5)))
        self.last, self.head = self.relu if shared else nn.ReLU(), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.last(self.blocks(self.relu(self.norm(self.stem(x)))) - 0.5).mean((2, 3)))


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(4, 4, 3, padding=1), activation

    def forward(self, x):
        return x + self.activation(self.conv(x))


def resnet():
    return sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 20}, seed=0), torch.randn(4, 3, 8, 8)


def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 30}
    config = LlamaConfig(num_hidden_layers=6, num_key_value_heads=1, attention_dropout=0.2, use_cache=False, **sizes)
    return LlamaForCausalLM(config), {"input_ids": torch.arange(20).view(2, 10) % 30}


NETWORKS = {
    "ResNet": resnet,
    "in place": lambda: (Touching(), torch.randn(4, 3, 5, 5)),
    "shared": lambda: (Shared(), torch.randn(4, 3, 5, 5)),
    "dropout": lambda: (nn.Sequential(nn.Linear(3, 6), *(Noisy() for _ in range(6))), torch.randn(5, 3)),
    "language model": language_model,
}


@pytest.fixture(params=NETWORKS)
def made(request):
    torch.manual_seed(0)
    network, inputs = NETWORKS[request.param]()
    return network, sglp.find_layers(network.eval(), inputs), inputs


def draws(layers, count=25):
    """Sets of layers to leave out, some of them alike from the beginning."""
    free, source = [i for i, layer in enumerate(layers) if layer.removable], random.Random(0)
    found = [[], free[-1:], free[:1], free[:1]]
    while len(found) < count:
        found.append(sorted(source.sample(free, source.randint(0, len(free) - 1))))
    return found


def one_pass(network, inputs):
    """A scalar of all outputs, with the random state that every pass begins in."""
    torch.manual_seed(1)
    output = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    return (output if isinstance(output, torch.Tensor) else output.logits).square().mean()


def gradients(network, loss, again):
    backward(loss, again)
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_resumed_pass_and_its_gradients_are_those_of_a_whole_one(made, training):
    network, layers, inputs = made
    bypass, prefix = Bypass(network, layers, inputs), PrefixCache(network, layers)
    network.train(training)
    for norm in [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.running_mean = norm.running_var = None  # what a pass leaves behind would differ
    for gone in draws(layers):
        with bypass.without(gone):
            whole = one_pass(network, inputs)
            expected = gradients(network, whole, again=False)
            with prefix.reuse(0, [i in gone for i in range(len(layers))]):
                reuse = one_pass(network, inputs)
            found = gradients(network, reuse, again=True)
        assert torch.equal(reuse, whole)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class Twice(nn.Module):
    """A layer that runs first and last."""

    def __init__(self):
        super().__init__()
        self.outer, self.blocks = nn.Linear(6, 6), nn.Sequential(*(Noisy() for _ in range(3)))

    def forward(self, x):
        return self.outer(self.blocks(self.outer(x).relu()))


def test_a_layer_that_runs_twice_gives_each_time_what_it_gives():
    torch.manual_seed(0)
    network, inputs, target = Twice().eval(), torch.randn(5, 6), torch.arange(5)
    layers = sglp.find_layers(network, inputs, ["outer", "blocks.*"])
    assert [layer.reason for layer in layers] == ["runs 2 times", "", "", ""]
    loss, batches = sglp.find_criterion("loss"), [(inputs, target)]
    one, gone = loss(network, layers, batches), [[], [1], [3], [1, 2]]
    assert [one((), some) for some in gone] == [loss(network, layers, batches)((), some) for some in gone]


def test_a_plan_does_not_depend_on_whether_activations_are_one_module():
    plans, inputs = [], torch.randn(32, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for shared in (True, False):
        torch.manual_seed(0)
        batches, sizes = [(inputs, torch.arange(32) % 10)], {"calibration": (32, 16), "scoring": (32, 32)}
        found = sglp.compress(Shared(shared), batches, k=2, recalibration=(0, 0), **sizes)
        plans.append((found.plan, found.scores))
    assert plans[0] == plans[1]


def test_nothing_is_computed_before_the_first_layer_that_differs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), *(Noisy() for _ in range(6)), nn.Linear(6, 2)).eval()
    layers = sglp.find_layers(network, torch.zeros(1, 3))
    ran = []
    for number, layer in enumerate(layers[1:], 1):
        inner = network.get_submodule(layer.modules[0]).fc
        inner.register_forward_hook(lambda module, args, output, number=number: ran.append(number))
    prefix, inputs = PrefixCache(network, layers), {0: torch.randn(4, 3), 1: torch.randn(4, 3)}

    def ran_in(batch, changed):
        ran.clear()
        with prefix.reuse(batch, [i in changed for i in range(len(layers))]):
            network(inputs[batch])
        return list(ran)

    assert ran_in(0, {}) == [1, 2, 3, 4, 5, 6]
    assert ran_in(1, {}) == [1, 2, 3, 4, 5, 6]  # another batch, which knows nothing yet
    assert ran_in(0, {4}) == [4, 5, 6]
    assert ran_in(0, {4, 6}) == [6]
    assert ran_in(0, {4, 6}) == []
    assert ran_in(0, {5}) == [4, 5, 6]
    assert ran_in(1, {3}) == [3, 4, 5, 6]


def test_a_pass_that_fails_leaves_the_network_as_it_was_and_nothing_to_go_on_with():
    network, inputs = resnet()
    layers = sglp.find_layers(network.eval(), inputs)
    prefix, states = PrefixCache(network, layers), [False] * len(layers)
    with pytest.raises(RuntimeError), prefix.reuse(0, states):
        network(inputs[:, :2])
    assert not any("forward" in vars(module) for module in network.modules())
    expected = network(inputs)
    for _ in range(2):
        with prefix.reuse(0, states):
            assert torch.equal(network(inputs), expected)


def test_outputs_that_are_changed_in_place_are_kept_as_copies():
    torch.manual_seed(0)
    network, inputs = Touching().eval(), torch.randn(4, 3, 5, 5)
    layers, ran = sglp.find_layers(network, inputs), []
    for block in network.blocks:
        block.conv.register_forward_hook(lambda *_: ran.append(1))
    prefix, counts = PrefixCache(network, layers), []
    for _ in range(4):
        ran.clear()
        with prefix.reuse(0, [False] * len(layers)):
            network(inputs)
        counts.append(len(ran))
    assert counts == [5, 5, 0, 0]  # the first pass tells which
