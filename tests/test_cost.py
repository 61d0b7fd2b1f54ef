"""Costs compared with published and hand-counted figures."""

import copy
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

import sglp
from sglp.cost import count_macs, count_parameters, macs_by_module, peak_memory

FLOAT = 4


@pytest.fixture(scope="module")
def resnet56():
    return sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 56}, seed=0)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_resnet56_has_the_published_size_for_any_batch_size(resnet56, samples):
    assert count_parameters(resnet56) == 853_018
    assert count_macs(resnet56, torch.zeros(samples, 3, 32, 32)) == 125_485_696


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("mobilenet_v2", torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1),
        ("swin_t", torchvision.models.Swin_T_Weights.IMAGENET1K_V1),
        ("vit_b_16", torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1),
    ],
)
def test_costs_equal_those_that_torchvision_publishes(name, weights):
    model = sglp.build(f"torchvision.models:{name}", seed=0)
    assert count_parameters(model) == weights.meta["num_params"]
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.001)


def test_macs_of_attention_equal_their_formula():
    """Input and output projections plus the two products of all heads: 4 tokens d^2 + 2 tokens^2 d."""
    torch.manual_seed(0)
    tokens, width = 6, 8

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    expected = 4 * tokens * width**2 + 2 * tokens**2 * width
    assert count_macs(Attention(), torch.zeros(3, tokens, width)) == expected


def test_macs_of_modules_add_up(resnet56):
    macs = macs_by_module(resnet56, torch.zeros(1, 3, 8, 8))
    parts = ("conv1", "layer1", "layer2", "layer3", "linear")
    assert macs[""] == sum(macs[part] for part in parts)
    assert macs["linear"] == 640
    assert macs["layer1"] == sum(macs[f"layer1.{i}"] for i in range(9)) == 18 * 9 * 16 * 16 * 64


def test_counting_leaves_the_network_unchanged(resnet56):
    model = copy.deepcopy(resnet56).train()
    model.layer1.eval()
    modes, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    count_macs(model, torch.zeros(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 4


@pytest.mark.parametrize("widths", [(10, 100, 7, 50), (1000, 3, 3, 3), (5, 5, 400, 1)], ids=str)
@pytest.mark.parametrize("samples", [1, 8])
def test_peak_memory_is_weights_input_and_two_neighbouring_activations(widths, samples):
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    first, *outputs = [samples * width for width in widths]
    alive = [outputs[0], *(a + b for a, b in pairwise(outputs))]
    expected = FLOAT * (count_parameters(model) + first + max(alive))
    assert peak_memory(model, torch.zeros(samples, widths[0])) == expected


def test_an_operation_in_place_costs_no_memory():
    def peak(inplace):
        return peak_memory(nn.Sequential(nn.Linear(3, 100), nn.ReLU(inplace)), torch.zeros(1, 3))

    assert peak(False) - peak(True) == FLOAT * 100


def test_a_residual_block_holds_its_input():
    class Residual(nn.Module):
        def forward(self, x):
            return x.relu().exp().neg() + x

    plain = nn.Sequential(nn.ReLU(), nn.Flatten())
    x = torch.zeros(1, 50)
    assert peak_memory(plain, x) == FLOAT * 2 * 50
    assert peak_memory(Residual(), x) == FLOAT * 3 * 50


def test_peak_memory_is_the_same_on_every_run(resnet56):
    model, x = copy.deepcopy(resnet56).eval(), torch.zeros(2, 3, 8, 8)
    assert len({peak_memory(model, x) for _ in range(3)}) == 1


def test_peak_memory_leaves_the_network_unchanged(resnet56):
    model = copy.deepcopy(resnet56).train()
    state = copy.deepcopy(model.state_dict())
    peak_memory(model, torch.ones(2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_removed_layers_need_no_memory_for_weights(network, layers, digits):
    removed = [layer for layer in layers if layer.removable]
    pruned = sglp.prune(network, sglp.Plan(["conv1+bn1"], [layer.name for layer in removed]))
    buffers = sum(tensor.nbytes for layer in removed for tensor in network.get_submodule(layer.name).buffers())
    saved = peak_memory(network, digits[0][:1]) - peak_memory(pruned, digits[0][:1])
    assert saved >= FLOAT * sum(layer.parameters for layer in removed) + buffers


def test_experts_are_counted_for_each_implementation():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    network, inputs = MixtralForCausalLM(config), {"input_ids": torch.arange(8)[None], "use_cache": False}
    counts = []
    for implementation in ("eager", "grouped_mm"):
        network.set_experts_implementation(implementation)
        counts.append(count_macs(network, inputs))
    experts = 2 * 8 * 2 * 3 * 16 * 24  # layers, tokens, experts per token, matrices, size of a matrix
    assert counts[0] == counts[1] > experts
