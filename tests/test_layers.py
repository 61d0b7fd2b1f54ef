"""Layers of known networks at the literature's granularity."""

import copy

import pytest
import torch
from torch import nn

import sglp
from sglp.cost import count_macs
from sglp.errors import LayerError

RESNET = "sglp.networks.cifar_resnet:resnet"


def names(layers):
    return [layer.name for layer in layers]


def llama(layers=4):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
    )
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(12).view(2, 6)}


class Residual(nn.Module):
    def __init__(self, width=6, out=6):
        super().__init__()
        self.fc = nn.Linear(width, out)
        self.short = nn.Identity() if width == out else nn.Linear(width, out)

    def forward(self, x):
        return self.fc(x).relu() + self.short(x)


def test_resnet56_has_28_layers_of_which_25_can_go():
    layers = sglp.find_layers(sglp.build(RESNET, {"depth": 56}, seed=0), torch.zeros(1, 3, 8, 8))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
    assert names(layers) == ["conv1+bn1", *blocks]
    assert {layer.name: layer.reason for layer in layers if not layer.removable} == {
        "conv1+bn1": "stem",
        "layer2.0": "changes the shape from 16x8x8 to 32x4x4",
        "layer3.0": "changes the shape from 32x4x4 to 64x2x2",
    }
    assert [layer.is_stem for layer in layers] == [True] + [False] * 27
    assert all(layer.reason == "" for layer in layers if layer.removable)


@pytest.mark.parametrize(
    ("name", "size", "stem", "count", "removable"),
    [
        ("resnet18", 32, "conv1+bn1+relu+maxpool", 8, 5),
        ("resnet50", 32, "conv1+bn1+relu+maxpool", 16, 12),
        ("vgg16_bn", 32, None, 13, 9),
        ("mobilenet_v2", 32, "features.0", 17, 10),
        ("efficientnet_b0", 32, "features.0", 16, 9),
        ("regnet_y_400mf", 32, "stem", 16, 12),
        ("convnext_tiny", 32, "features.0", 18, 18),
        ("vit_b_16", 224, "conv_proj+encoder.dropout", 12, 12),
        ("swin_t", 32, "features.0", 12, 12),
    ],
)
def test_networks_of_torchvision_have_their_blocks_as_layers(name, size, stem, count, removable):
    model, example = sglp.build(f"torchvision.models:{name}", seed=0), torch.zeros(1, 3, size, size)
    layers = sglp.find_layers(model, example)
    assert names([layer for layer in layers if layer.is_stem]) == ([stem] if stem else [])
    assert sum(not layer.is_stem for layer in layers) == count
    assert sum(layer.removable for layer in layers) == removable
    assert 0 < sum(layer.macs for layer in layers) <= count_macs(model, example)
    assert all(layer.parameters > 0 for layer in layers)


def test_units_of_vgg_are_a_convolution_and_what_follows_it():
    model = sglp.build("torchvision.models:vgg16_bn", seed=0)
    layers = sglp.find_layers(model, torch.zeros(1, 3, 32, 32))
    assert names(layers)[:3] == [f"features.{i}+features.{i + 1}+features.{i + 2}" for i in (0, 3, 7)]
    assert layers[0].reason == "changes the shape from 3x32x32 to 64x32x32"
    assert layers[1].removable


def test_units_of_a_perceptron_are_its_linear_layers():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)
    )
    layers = sglp.find_layers(model, torch.zeros(2, 2, 4))
    assert names(layers) == ["1+2", "3+4", "5", "6"]
    assert [layer.removable for layer in layers] == [False, True, True, False]
    assert [layer.parameters for layer in layers] == [54, 42, 42, 21]
    assert [layer.macs for layer in layers] == [48, 36, 36, 18]


def test_layers_of_a_language_model_are_its_decoder_layers():
    model, example = llama()
    layers = sglp.find_layers(model, example)
    assert names(layers) == [f"model.layers.{i}" for i in range(4)]
    assert all(layer.removable for layer in layers)
    assert sum(layer.macs for layer in layers) <= count_macs(model, example)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_do_not_depend_on_the_batch(network, batch):
    one = sglp.find_layers(network, torch.zeros(1, 1, 8, 8))
    assert sglp.find_layers(network, torch.zeros(batch, 1, 8, 8)) == one


def test_costs_of_layers_are_those_of_their_modules(network, layers):
    for layer in layers:
        modules = [network.get_submodule(path) for path in layer.modules]
        assert layer.parameters == sum(p.numel() for module in modules for p in module.parameters())
    widths, pixels = (16, 32, 64), (64, 16, 4)
    for stage in range(3):
        macs = [layer.macs for layer in layers if layer.name.startswith(f"layer{stage + 1}.")]
        assert macs[1:] == [2 * 9 * widths[stage] ** 2 * pixels[stage]] * 2


def test_the_network_is_left_as_it_was(network):
    network.train()
    network.layer1.eval()
    network.layer3.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    frozen = [p.requires_grad for p in network.parameters()]
    state = copy.deepcopy(network.state_dict())
    example = torch.zeros(2, 1, 8, 8)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    sglp.find_layers(network, example)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == frozen
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not example.requires_grad


def test_a_network_that_fails_is_left_as_it_was(network):
    network.train()
    with pytest.raises(RuntimeError):
        sglp.find_layers(network, torch.zeros(2, 5, 8, 8))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_frozen_networks_and_no_grad_have_the_same_layers(network, layers):
    network.requires_grad_(False)
    with torch.no_grad():
        assert sglp.find_layers(network, torch.zeros(2, 1, 8, 8)) == layers


def test_layers_come_in_the_order_of_execution():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.middle = Residual(6, 3), Residual(), Residual()

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    layers = sglp.find_layers(Reversed(), torch.zeros(2, 6))
    assert names(layers) == ["first", "middle", "last"]
    assert [layer.removable for layer in layers] == [True, True, False]


def test_a_block_that_runs_twice_can_not_go():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Residual() for _ in range(3))

        def forward(self, x):
            for i in (0, 1, 1, 2):
                x = self.blocks[i](x)
            return x

    layers = sglp.find_layers(Recurrent(), torch.zeros(2, 6))
    assert names([layer for layer in layers if layer.removable]) == ["blocks.0", "blocks.2"]


def test_an_activation_that_is_shared_does_not_tie_units_together():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 6))
    layers = sglp.find_layers(model, torch.zeros(2, 6))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for layer in [layer for layer in layers if layer.removable]:
        pruned = sglp.prune(model, sglp.Plan([n for n in names(layers) if n != layer.name], [layer.name]))
        assert pruned(x).shape == (3, 6)
    assert len(layers) == 3


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no layers can be told apart in Sequential"),
        (Constant(), "the network's output does not depend on its input"),
    ],
)
def test_networks_without_layers_are_refused(model, message):
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(model, torch.zeros(2, 4))
