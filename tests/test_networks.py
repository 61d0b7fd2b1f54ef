"""The CIFAR ResNets against the paper's sizes and a functional reference."""

import pytest
import torch
import torch.nn.functional as F

import sglp
from sglp.cost import count_parameters
from sglp.errors import ArchitectureError
from sglp.networks.cifar_resnet import BasicBlock, resnet


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_sizes_are_those_of_the_paper(depth, millions):
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
def test_classes_channels_and_image_sizes_are_free(classes, channels, size):
    torch.manual_seed(0)
    model = resnet(8, num_classes=classes, in_channels=channels)
    assert model(noise(2, channels, size, size)).shape == (2, classes)


def test_images_of_a_batch_do_not_meet_in_eval_mode():
    model = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8}, seed=0).eval()
    x = noise(4, 3, 8, 8)
    one_by_one = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 9, 51, 0, -4])
def test_other_depths_are_refused(depth):
    with pytest.raises(ArchitectureError, match=f"depth={depth} is no CIFAR ResNet: it must be 6n\\+2"):
        resnet(depth)


def test_the_seed_alone_sets_the_weights():
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
        ("resnet", {}, "no dotted name: write package.module:function"),
        ("sglp.networks:cifar resnet", {}, "no dotted name"),
        ("sglp.networks.vgg:vgg16", {}, "the module sglp.networks.vgg can't be imported"),
        ("sglp.networks.cifar_resnet:vgg", {}, "the module sglp.networks.cifar_resnet has no vgg"),
        ("sglp.networks.cifar_resnet:resnet", {"deep": 3}, r"can't build a network from \{'deep': 3\}: .*deep"),
        ("sglp.networks.cifar_resnet:WIDTHS", {}, "can't build a network"),
        ("torchvision.models:list_models", {}, "returned a list, but a factory returns a torch module"),
        ("torchvision.models:resnet18", {"weights": None}, "the argument 'weights' .* fetches weights"),
    ],
)
def test_networks_that_can_not_be_built_are_refused(factory, kwargs, message):
    with pytest.raises(ArchitectureError, match=message):
        sglp.build(factory, kwargs, seed=0)
