"""Passes that reuse a cached prefix give the same outputs and gradients, bit for bit, as whole passes."""

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
    """A block that changes its input in place before it adds to it."""

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
    """A stem whose output is changed in place, and blocks."""

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
    """A network with one activation for the stem, all blocks and the classifier's input."""

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
def case(request):
    torch.manual_seed(0)
    network, inputs = NETWORKS[request.param]()
    return network, sglp.find_layers(network.eval(), inputs), inputs


def random_sets(layers, count=25):
    """Draw sets of layers to leave out, some of which share their first layers."""
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    source = random.Random(0)
    sets = [[], removable[-1:], removable[:1], removable[:1]]
    while len(sets) < count:
        sets.append(sorted(source.sample(removable, source.randint(0, len(removable) - 1))))
    return sets


def one_pass(network, inputs):
    """Compute a scalar of all outputs, from a fixed random state."""
    torch.manual_seed(1)
    output = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    return (output if isinstance(output, torch.Tensor) else output.logits).square().mean()


def gradients(network, loss, again):
    backward(loss, again)
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return gradients


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_resumed_pass_and_its_gradients_equal_a_whole_one(case, training):
    network, layers, inputs = case
    bypass = Bypass(network, layers, inputs)
    cache = PrefixCache(network, layers)
    network.train(training)
    for norm in [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.running_mean = norm.running_var = None  # each pass would update them
    for removed in random_sets(layers):
        with bypass.without(removed):
            whole = one_pass(network, inputs)
            expected = gradients(network, whole, again=False)
            with cache.reuse(0, [i in removed for i in range(len(layers))]):
                resumed = one_pass(network, inputs)
            actual = gradients(network, resumed, again=True)
        assert torch.equal(resumed, whole)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


class Twice(nn.Module):
    """A layer that runs first and last."""

    def __init__(self):
        super().__init__()
        self.outer, self.blocks = nn.Linear(6, 6), nn.Sequential(*(Noisy() for _ in range(3)))

    def forward(self, x):
        return self.outer(self.blocks(self.outer(x).relu()))


def test_a_layer_that_runs_twice_is_never_replayed():
    torch.manual_seed(0)
    network, inputs, target = Twice().eval(), torch.randn(5, 6), torch.arange(5)
    layers = sglp.find_layers(network, inputs, ["outer", "blocks.*"])
    assert [layer.reason for layer in layers] == ["runs 2 times", "", "", ""]
    loss, batches = sglp.find_criterion("loss"), [(inputs, target)]
    criterion, sets = loss(network, layers, batches), [[], [1], [3], [1, 2]]
    assert [criterion((), removed) for removed in sets] == [
        loss(network, layers, batches)((), removed) for removed in sets
    ]


def test_a_plan_does_not_depend_on_whether_activations_are_one_module():
    plans, inputs = [], torch.randn(32, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for shared in (True, False):
        torch.manual_seed(0)
        batches, sizes = [(inputs, torch.arange(32) % 10)], {"calibration": (32, 16), "scoring": (32, 32)}
        compressed = sglp.compress(Shared(shared), batches, k=2, recalibration=(0, 0), **sizes)
        plans.append((compressed.plan, compressed.scores))
    assert plans[0] == plans[1]


def test_nothing_is_computed_before_the_first_changed_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), *(Noisy() for _ in range(6)), nn.Linear(6, 2)).eval()
    layers = sglp.find_layers(network, torch.zeros(1, 3))
    ran = []
    for number, layer in enumerate(layers[1:], 1):
        inner = network.get_submodule(layer.modules[0]).fc
        inner.register_forward_hook(lambda module, args, output, number=number: ran.append(number))
    cache, inputs = PrefixCache(network, layers), {0: torch.randn(4, 3), 1: torch.randn(4, 3)}

    def ran_in(batch, changed):
        ran.clear()
        with cache.reuse(batch, [i in changed for i in range(len(layers))]):
            network(inputs[batch])
        return list(ran)

    assert ran_in(0, {}) == [1, 2, 3, 4, 5, 6]
    assert ran_in(1, {}) == [1, 2, 3, 4, 5, 6]  # another batch, of which nothing is cached yet
    assert ran_in(0, {4}) == [4, 5, 6]
    assert ran_in(0, {4, 6}) == [6]
    assert ran_in(0, {4, 6}) == []
    assert ran_in(0, {5}) == [4, 5, 6]
    assert ran_in(1, {3}) == [3, 4, 5, 6]


def test_a_failed_pass_leaves_the_network_unchanged_and_nothing_cached():
    network, inputs = resnet()
    layers = sglp.find_layers(network.eval(), inputs)
    cache, states = PrefixCache(network, layers), [False] * len(layers)
    with pytest.raises(RuntimeError), cache.reuse(0, states):
        network(inputs[:, :2])
    assert not any("forward" in vars(module) for module in network.modules())
    expected = network(inputs)
    for _ in range(2):
        with cache.reuse(0, states):
            assert torch.equal(network(inputs), expected)


def test_outputs_that_are_changed_in_place_are_cached_as_copies():
    torch.manual_seed(0)
    network, inputs = Touching().eval(), torch.randn(4, 3, 5, 5)
    layers, ran = sglp.find_layers(network, inputs), []
    for block in network.blocks:
        block.conv.register_forward_hook(lambda *_: ran.append(1))
    cache, counts = PrefixCache(network, layers), []
    for _ in range(4):
        ran.clear()
        with cache.reuse(0, [False] * len(layers)):
            network(inputs)
        counts.append(len(ran))
    assert counts == [5, 5, 0, 0]  # the first pass finds out which outputs need copies
