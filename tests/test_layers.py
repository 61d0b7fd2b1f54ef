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


def test_resnet56_has_28_layers_of_which_25_are_removable():
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
def test_blocks_of_torchvision_networks_are_layers(name, size, stem, count, removable):
    model = sglp.build(f"torchvision.models:{name}", seed=0)
    example = torch.zeros(1, 3, size, size)
    layers = sglp.find_layers(model, example)
    assert names([layer for layer in layers if layer.is_stem]) == ([stem] if stem else [])
    assert sum(not layer.is_stem for layer in layers) == count
    assert sum(layer.removable for layer in layers) == removable
    assert 0 < sum(layer.macs for layer in layers) <= count_macs(model, example)
    assert all(layer.parameters > 0 for layer in layers)


def test_blocks_of_densenet_all_change_the_shape():
    model = sglp.build("torchvision.models:densenet121", seed=0)
    with pytest.raises(LayerError, match=r"for example features\.denseblock1 \(_DenseBlock\) from 64x8x8 to 256x8x8"):
        sglp.find_layers(model, torch.zeros(2, 3, 32, 32))


def test_units_of_vgg_are_a_convolution_and_the_modules_after_it():
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


def test_a_module_that_contains_exactly_a_unit_is_the_layer():
    hidden = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *hidden, nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    assert names(sglp.find_layers(network, torch.randn(2, 4))) == ["0+1", "2", "3", "4", "5.0", "5.1"]


def test_layers_of_a_language_model_are_its_decoder_layers():
    model, example = llama()
    layers = sglp.find_layers(model, example)
    assert names(layers) == [f"model.layers.{i}" for i in range(4)]
    assert all(layer.removable for layer in layers)
    assert sum(layer.macs for layer in layers) <= count_macs(model, example)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_do_not_depend_on_the_batch(network, batch):
    expected = sglp.find_layers(network, torch.zeros(1, 1, 8, 8))
    assert sglp.find_layers(network, torch.zeros(batch, 1, 8, 8)) == expected


def test_costs_of_layers_are_those_of_their_modules(network, layers):
    for layer in layers:
        modules = [network.get_submodule(path) for path in layer.modules]
        assert layer.parameters == sum(p.numel() for module in modules for p in module.parameters())
    widths, pixels = (16, 32, 64), (64, 16, 4)
    for stage in range(3):
        macs = [layer.macs for layer in layers if layer.name.startswith(f"layer{stage + 1}.")]
        assert macs[1:] == [2 * 9 * widths[stage] ** 2 * pixels[stage]] * 2


def test_the_network_is_left_unchanged(network):
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


def test_a_network_that_fails_is_left_unchanged(network):
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
            self.last = Residual(6, 3)
            self.first = Residual()
            self.middle = Residual()

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    layers = sglp.find_layers(Reversed(), torch.zeros(2, 6))
    assert names(layers) == ["first", "middle", "last"]
    assert [layer.removable for layer in layers] == [True, True, False]


def test_a_block_that_runs_twice_is_not_removable():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Residual() for _ in range(3))
            self.again = self.blocks[1]

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
                if block is self.again:
                    x = block(x)
            return x

    layers = sglp.find_layers(Recurrent(), torch.zeros(2, 6))
    assert names([layer for layer in layers if layer.removable]) == ["blocks.0", "blocks.2"]


def test_a_shared_activation_does_not_join_units():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 6))
    layers = sglp.find_layers(model, torch.zeros(2, 6))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for layer in [layer for layer in layers if layer.removable]:
        pruned = sglp.prune(model, sglp.Plan([n for n in names(layers) if n != layer.name], [layer.name]))
        assert pruned(x).shape == (3, 6)
    assert len(layers) == 3


class Gated(nn.Module):
    """A convolution and a squeeze-excitation, without a residual connection."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.se = Excitation()

    def forward(self, x):
        return self.se(self.conv(x))


class Excitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.fc(x.mean((2, 3), keepdim=True)).sigmoid() * x


def test_a_gate_is_not_a_block():
    layers = sglp.find_layers(nn.Sequential(Gated(), Gated(), Gated()), torch.zeros(2, 4, 5, 5))
    assert names(layers) == ["0.conv", "1.conv", "2.conv"]


class Halves(nn.Module):
    """A transformer block with two residual modules."""

    def __init__(self):
        super().__init__()
        self.attention = Residual()
        self.mlp = Residual()

    def forward(self, x):
        return self.mlp(self.attention(x))


class Wrapped(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x):
        return self.trunk(x)


def test_parts_that_a_module_calls_by_name_are_not_layers():
    layers = sglp.find_layers(nn.Sequential(Halves(), Halves(), nn.Linear(6, 2)), torch.zeros(2, 6))
    assert names(layers) == ["0", "1"]
    # A module that is the only one of its class contains all blocks.
    alone = sglp.find_layers(Wrapped(Halves()), torch.zeros(2, 6))
    assert names(alone) == ["trunk.attention", "trunk.mlp"]


def test_a_stage_that_calls_its_blocks_by_name_is_not_a_layer():
    class Stage(nn.Module):
        def __init__(self, width, out):
            super().__init__()
            self.first = Residual(width, out)
            self.second = Residual(out, out)

        def forward(self, x):
            return self.second(self.first(x))

    layers = sglp.find_layers(nn.Sequential(Stage(6, 6), Stage(6, 4)), torch.zeros(2, 6))
    assert names(layers) == ["0.first", "0.second", "1.first", "1.second"]
    assert [layer.removable for layer in layers] == [True, True, False, True]


def test_patterns_name_the_layers_in_order_of_execution(network, layers):
    example = torch.zeros(2, 1, 8, 8)
    assert sglp.find_layers(network, example, "layer*.*") == layers[1:]
    assert sglp.find_layers(network, example, ["layer3.*", "layer1.1"]) == [layers[2], *layers[7:]]
    assert sglp.find_layers(network, example, paths=[layer.name for layer in layers])[1:] == layers[1:]
    stem, stage = sglp.find_layers(network, example, ["layer1", "bn1+conv1"])
    assert (stem.name, stem.reason) == ("conv1+bn1", "changes the shape from 1x8x8 to 16x8x8")
    assert (stage.name, stage.removable) == ("layer1", True)
    assert stage.parameters == sum(layer.parameters for layer in layers[1:4])


def test_a_star_matches_one_part_of_a_path(network):
    layers = sglp.find_layers(network, torch.zeros(2, 1, 8, 8), "layer2.*.conv*")
    assert names(layers) == [f"layer2.{block}.conv{i}" for block in range(3) for i in (1, 2)]
    # What keeps the shape can be removed, also inside a residual branch.
    assert [layer.reason for layer in layers] == ["changes the shape from 16x8x8 to 32x4x4", *[""] * 5]


def test_layers_by_name_have_a_reason_why_they_are_not_removable():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 6), shared, shared)
    apart, again = sglp.find_layers(model, torch.zeros(2, 6), ["0+2", "3"])
    assert apart.reason == "its modules do not run directly one after another"
    assert again.reason == "runs 2 times"
    (together,) = sglp.find_layers(model, torch.zeros(2, 6), "0+1+2")
    assert together.removable


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("layer9.*", r"the pattern 'layer9\.\*' matches no module of CifarResNet, which has conv1, bn1, layer1, "),
        (["layer1.*", "conv1+bn9"], r"the pattern 'conv1\+bn9' matches no module"),
        ("conv1+layer1.0", r"the pattern 'conv1\+layer1\.0' matches no module"),
        (
            ["layer1.*", "layer1.0.conv1"],
            r"'layer1\.0\.conv1' matches layer1\.0\.conv1 of CifarResNet, which is inside the layer",
        ),
        (
            ["layer1.0.bn*", "layer1"],
            r"'layer1\.0\.bn\*' matches layer1\.0\.bn1 of CifarResNet, which is inside the layer",
        ),
        (["layer1.*", "layer*.1"], r"'layer\*\.1' matches layer1\.1 of CifarResNet, which is already a layer"),
        ("unused", "the pattern 'unused' matches unused of CifarResNet, which does not run"),
        (
            ["conv1+layer1", "bn1"],
            r"the layers conv1\+layer1 and bn1 of CifarResNet overlap: one must finish",
        ),
        ([], "paths is empty: pass module paths of CifarResNet, such as conv1, bn1, "),
    ],
)
def test_patterns_that_match_no_layers_are_refused(network, paths, message):
    network.unused = nn.Linear(2, 2)
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(network, torch.zeros(2, 1, 8, 8), paths)


class Numbered(nn.Module):
    """A parent that uses the indices of its blocks: it changes the third input, or scales each input differently."""

    def __init__(self, use, sequential):
        super().__init__()
        blocks = [Residual() for _ in range(4)]
        self.blocks = nn.Sequential(*blocks) if sequential else nn.ModuleList(blocks)
        self.use = use
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0 + i)) for i in range(4))

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            if self.use == "position" and i == 2:
                x = x + 1
            if self.use == "scales":
                x = x * self.scales[i]
            x = (self.blocks[i + 4 - 4] if self.use == "indices" else block)(x)
        return self.blocks[3](x) if self.use == "the fourth again" else x


@pytest.mark.parametrize(
    ("use", "removable"), [("in a row", 4), ("indices", 4), ("position", 0), ("scales", 0), ("the fourth again", 0)]
)
@pytest.mark.parametrize("sequential", [False, True], ids=["list", "sequential"])
def test_a_list_whose_indices_its_parent_uses_is_not_removable(use, removable, sequential):
    torch.manual_seed(0)
    model = Numbered(use, sequential)
    x = torch.randn(2, 6)
    state = list(model.state_dict())
    before = model(x)
    layers = sglp.find_layers(model, x)
    assert sum(layer.removable for layer in layers) == removable
    reasons = {layer.reason for layer in layers if not layer.removable}
    assert reasons <= {"is in a list whose parent depends on the indices of its items"}
    assert list(model.state_dict()) == state
    assert torch.equal(model(x), before)


class Listed(nn.Module):
    """A parent that picks one value from the dict that each block returns."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ReturnsDict() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)["x"]
        return x


class ReturnsDict(Residual):
    def forward(self, x):
        return {"x": super().forward(x), "mean": x.mean()}


def test_blocks_that_return_a_dict_are_not_removable():
    layers = sglp.find_layers(Listed(), torch.zeros(2, 6))
    assert {layer.reason for layer in layers} == {"takes a tensor and returns a dict"}


class Again(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Residual(4, 4)

    def forward(self, x):
        return self.block(self.block(self.block(x)))


class Dense(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        return torch.cat([x, self.fc(x)], dim=1)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no layers can be distinguished in Sequential"),
        (Again(), "no layers can be distinguished in Again: block runs 3 times"),
        (
            nn.Sequential(Dense(4), Dense(8), nn.Linear(12, 4)),
            r"its blocks change the shape, for example 0 \(Dense\) from 4 to 8$",
        ),
        (Constant(), "autograd does not connect the network's output with its input"),
    ],
)
def test_networks_without_layers_are_refused(model, message):
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(model, torch.zeros(2, 4))
