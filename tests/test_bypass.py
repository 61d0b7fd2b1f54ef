"""A network with bypassed layers computes, bit for bit, what the pruned network computes."""

import copy
from itertools import combinations

import cases
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from hugging_face_families import FAMILIES, REMOVED, example, make, outputs, plan
from networks import Keywords, Pairs, Sized, Unpacked, logits, plan_without
from torch import nn

import sglp
from sglp.scoring.features import Features
from sglp.surgery.bypass import Bypass


def without(bypass, removed, network, inputs):
    with bypass.without(removed):
        return cases.run(network, inputs)


def forwards(network):
    """Return the forwards that are set on instances."""
    return {path: vars(module)["forward"] for path, module in network.named_modules() if "forward" in vars(module)}


@pytest.fixture
def case(network, digits):
    return cases.cnn(network, digits, torch.float32)


@pytest.mark.parametrize("removed", REMOVED, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_hugging_face_family_computes_the_same_as_pruned(family, removed):
    network, inputs = make(family), example(family)
    layers = sglp.find_layers(network, inputs)
    expected = outputs(sglp.prune(network, plan(family, removed)), inputs)
    bypass = Bypass(network, layers, inputs)
    dense = outputs(network, inputs)
    with bypass.without(removed):
        assert torch.equal(outputs(network, inputs), expected)
    assert torch.equal(outputs(network, inputs), dense)
    assert not torch.equal(expected, dense)
    assert forwards(network) == {}


def test_a_cnn_computes_the_same_as_pruned(case):
    images = case.batches[0][0]
    bypass = Bypass(case.network, case.layers, images)
    for count in (0, 1, 2, 6, 7):
        for removed in list(combinations(case.removable, count))[:8]:
            expected = cases.run(case.without(removed), images)
            assert torch.equal(without(bypass, removed, case.network, images), expected)


def test_units_of_several_modules_are_bypassed_together():
    torch.manual_seed(0)
    unit = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    units = [copy.deepcopy(module) for _ in range(3) for module in unit]
    model = nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    x = torch.randn(5, 4, 6, 6)
    case = cases.Case(model, sglp.find_layers(model, x), [], None, [])
    assert [len(layer.modules) for layer in case.layers] == [3, 3, 3]
    bypass = Bypass(model, case.layers, x)
    for removed in ([0], [1, 2], [0, 1, 2]):
        assert torch.equal(without(bypass, removed, model, x), cases.run(case.without(removed), x))


@pytest.mark.parametrize(
    ("make", "removed"), [(Keywords, [0, 2]), (Pairs, [1, 3]), (Unpacked, [0, 3]), (Sized, [0, 3])]
)
def test_further_arguments_and_outputs_are_handled(make, removed):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(3, 5)
    layers = sglp.find_layers(model, x)
    small = sglp.prune(model, plan_without(layers, [layers[i].name for i in removed]))
    with Bypass(model, layers, x).without(removed):
        assert torch.equal(logits(model, x), logits(small, x))


def test_gradients_are_those_of_the_pruned_network(case):
    images, targets = case.batches[0]
    small = case.without([2, 5]).train()
    nn.functional.cross_entropy(small(images), targets).backward()
    with Bypass(case.network, case.layers, images).without([2, 5]):
        nn.functional.cross_entropy(case.network.train()(images), targets).backward()
    gradients = [p.grad for p in case.network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(small.parameters()))
    assert all(map(torch.equal, gradients, (p.grad for p in small.parameters())))


def test_bypasses_can_be_nested(case):
    images = case.batches[0][0]
    bypass = Bypass(case.network, case.layers, images)
    dense = cases.run(case.network, images)
    with bypass.without([2]):
        with bypass.without([5, 2]):
            assert torch.equal(cases.run(case.network, images), cases.run(case.without([2, 5]), images))
        assert torch.equal(cases.run(case.network, images), cases.run(case.without([2]), images))
    assert torch.equal(cases.run(case.network, images), dense)
    assert forwards(case.network) == {}


def test_layers_are_restored_after_an_error(case):
    images = case.batches[0][0]
    bypass = Bypass(case.network, case.layers, images)
    dense = cases.run(case.network, images)
    with pytest.raises(KeyboardInterrupt), bypass.without([1, 2]):
        raise KeyboardInterrupt
    with pytest.raises(KeyError), bypass.without([1, 4]):  # 4 changes the shape
        pytest.fail("a layer that is not removable was bypassed")
    assert torch.equal(cases.run(case.network, images), dense)
    assert forwards(case.network) == {}


def test_forwards_that_accelerate_sets_are_restored(case):
    """accelerate wraps `forward` if a network is spread over devices."""

    class Counting(ModelHook):
        runs = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.runs += 1
            return args, kwargs

    images = case.batches[0][0]
    expected = cases.run(case.without([1, 5]), images)
    for block in (*case.network.layer1, *case.network.layer2):
        add_hook_to_module(block, Counting())
    before = forwards(case.network)
    assert len(before) == 6
    bypass = Bypass(case.network, case.layers, images)
    Counting.runs = 0
    assert torch.equal(without(bypass, [1, 5], case.network, images), expected)
    assert Counting.runs == 4
    assert all(forward is before[path] for path, forward in forwards(case.network).items())
    assert len(forwards(case.network)) == 6


def test_learning_what_layers_return_leaves_no_trace(case):
    network = case.network.train()
    network.layer2.eval()
    state = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Bypass(network, case.layers, case.batches[0][0])
    Features(network, case.layers, case.batches[0][0])
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_features_are_the_input_of_the_classifier(case):
    images = case.batches[0][0]
    x = torch.relu(case.network.bn1(case.network.conv1(images)))
    expected = case.network.layer3(case.network.layer2(case.network.layer1(x))).mean(dim=(2, 3))
    features = Features(case.network, case.layers, images)
    assert features.classifier is case.network.linear
    assert torch.equal(features([images])[0], expected.detach().double())
    llama = cases.llama()
    inputs = llama.batches[0][0]
    features = Features(llama.network, llama.layers, inputs)
    assert features.classifier is llama.network.lm_head
    with torch.no_grad():
        hidden = llama.network.model(**inputs).last_hidden_state
    assert torch.equal(features([inputs])[0], hidden.reshape(-1, 16))


def test_a_classifier_can_be_called_by_keyword():
    class Named(nn.Sequential):
        def forward(self, x):
            return self[2](input=self[1](self[0](x)))

    torch.manual_seed(0)
    network, x = Named(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)).eval(), torch.randn(4, 3)
    (features,) = Features(network, sglp.find_layers(network, x), x)([x])
    assert torch.equal(features, network[1](network[0](x)).detach().double())


@pytest.mark.parametrize("headless", [False, True])
def test_without_a_classifier_the_features_are_the_output(headless):
    """The last weights are in a removable layer, whose input would be the same without the layer."""
    case = cases.llama()
    network = case.network.model if headless else case.network
    inputs = case.batches[0][0]
    layers = sglp.find_layers(network, inputs)
    features = Features(network, layers, inputs)
    assert (features.classifier is None) == headless
    (dense,) = features([inputs])
    with Bypass(network, layers, inputs).without([len(layers) - 1]):
        (small,) = features([inputs])
    assert dense.shape == small.shape == (inputs["input_ids"].numel(), 16)
    assert not torch.allclose(dense, small)
    with torch.no_grad():
        assert torch.equal(dense, case.network.model(**inputs).last_hidden_state.reshape(-1, 16))
