"""The CIFAR networks compared with published sizes and independent implementations."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import vgg as torchvision_vgg

import sglp
from sglp.cost import count_macs, count_parameters
from sglp.errors import ArchitectureError
from sglp.networks.cifar_resnet import BasicBlock, resnet
from sglp.networks.cifar_vgg import vgg


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_sizes_equal_those_of_the_paper(depth, millions):
    with torch.device("meta"):
        model = resnet(depth)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == depth


@pytest.mark.parametrize(("width", "channels", "stride"), [(16, 16, 1), (16, 32, 2), (32, 64, 2)])
def test_a_block_equals_its_formula(width, channels, stride):
    torch.manual_seed(0)
    block, x = BasicBlock(width, channels, stride).eval(), noise(2, width, 8, 8)
    inner = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    inner = F.relu(inner / (1 + 1e-5) ** 0.5)
    inner = F.conv2d(inner, block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    shortcut = torch.zeros_like(inner)
    before = (channels - width) // 2
    shortcut[:, before : before + width] = x[:, :, ::stride, ::stride]
    torch.testing.assert_close(block(x), F.relu(inner + shortcut), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("classes", "channels", "size"), [(10, 3, 32), (100, 1, 8), (7, 4, 28)])
def test_classes_channels_and_image_sizes_can_be_chosen(classes, channels, size):
    torch.manual_seed(0)
    model = resnet(8, num_classes=classes, in_channels=channels)
    assert model(noise(2, channels, size, size)).shape == (2, classes)


def test_images_of_a_batch_are_independent_in_eval_mode():
    model = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8}, seed=0).eval()
    x = noise(4, 3, 8, 8)
    one_by_one = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 9, 51, 0, -4])
def test_other_depths_are_refused(depth):
    with pytest.raises(ArchitectureError, match=f"depth={depth} is not the depth of a CIFAR ResNet: it must be 6n\\+2"):
        resnet(depth)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(11, 9_231_114), (13, 9_416_010), (16, 14_728_266), (19, 20_040_522)]
)
def test_vggs_have_the_published_sizes(depth, parameters):
    # kuangliu/pytorch-cifar: convolutions with biases, one linear layer; 14.7 M parameters at depth 16.
    with torch.device("meta"):
        model = vgg(depth)
    assert count_parameters(model) == parameters
    # The name counts three linear layers, as in the ImageNet networks.
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == depth - 2


@pytest.mark.parametrize(("depth", "configuration"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
def test_a_vgg_equals_torchvisions_with_one_linear_layer(depth, configuration):
    # Convolutions, batch norm and pooling are those of the ImageNet networks, under the same names.
    features = torchvision_vgg.make_layers(torchvision_vgg.cfgs[configuration], batch_norm=True).eval()
    model = sglp.build("sglp.networks.cifar_vgg:vgg", {"depth": depth}, seed=0).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(
                module, torch.nn.BatchNorm2d
            ):  # as after training; the initial statistics would hide differences
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    features.load_state_dict(model.features.state_dict())
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.classifier(features(x).flatten(1)))


def test_a_vgg_costs_what_the_literature_says():
    # Li et al. 2017, table 1: 3.13e8 operations.
    with torch.device("meta"):
        model = vgg(16)
    assert count_macs(model.to_empty(device="cpu"), torch.zeros(1, 3, 32, 32)) / 1e8 == pytest.approx(3.13, abs=0.01)


def test_the_layers_of_a_vgg_are_its_convolutions():
    layers = sglp.find_layers(vgg(16, width=4), torch.zeros(1, 3, 32, 32))
    assert len(layers) == 13
    # All but the first of each stage, which changes the channels; the last two stages have the same width.
    assert [layer.removable for layer in layers] == [i not in (0, 2, 4, 7) for i in range(13)]


def test_the_weights_of_a_vgg_keep_the_signal():
    # He et al. 2015, fan-out: the variance of a weight is 2 / (9 * number of outputs).
    model = sglp.build("sglp.networks.cifar_vgg:vgg", {}, seed=0)
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d):
            deviation = (2 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert not module.bias.any()


@pytest.mark.parametrize(("classes", "channels", "size"), [(10, 1, 8), (100, 3, 32), (7, 4, 45)])
def test_a_vgg_takes_images_of_any_size(classes, channels, size):
    torch.manual_seed(0)
    assert vgg(11, classes, channels, width=4)(noise(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("depth", [0, 12, 20, "16"])
def test_other_vggs_are_refused(depth):
    with pytest.raises(
        ArchitectureError, match=f"depth={depth} is not the depth of a VGG: it must be 11, 13, 16 or 19"
    ):
        vgg(depth)


def test_the_weights_depend_only_on_the_seed():
    def weights(seed):
        return torch.cat(
            [p.flatten() for p in sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8}, seed=seed).parameters()]
        )

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("resnet", {}, "not a dotted name: write package.module:function"),
        ("sglp.networks:cifar resnet", {}, "not a dotted name"),
        ("sglp.networks.vgg:vgg16", {}, "the module sglp.networks.vgg can't be imported"),
        ("sglp.networks.cifar_resnet:vgg", {}, "the module sglp.networks.cifar_resnet has no vgg"),
        ("sglp.networks.cifar_resnet:resnet", {"deep": 3}, r"can't build a network from \{'deep': 3\}: .*deep"),
        ("sglp.networks.cifar_resnet:WIDTHS", {}, "can't build a network"),
        ("torchvision.models:list_models", {}, "returned a list, but a factory must return a torch module"),
        ("torchvision.models:resnet18", {"weights": None}, "the argument 'weights' .* fetches weights"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(factory, kwargs, message):
    with pytest.raises(ArchitectureError, match=message):
        sglp.build(factory, kwargs, seed=0)
