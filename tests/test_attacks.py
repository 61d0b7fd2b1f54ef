"""FGSM and PGD against torchattacks, and properties of every attack within eps."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn

from sglp.robustness.attacks import fgsm, pgd, random_start

EPS = 0.05
SEEDS = [(0, i) for i in range(64)]


@pytest.fixture
def images(digits):
    return (digits[0][:64] + 1) / 2


@pytest.fixture
def labels(digits):
    return digits[1][:64]


@pytest.fixture
def predict(network) -> nn.Module:
    """Return a module, as torchattacks expects, that normalises images and runs the trained network."""

    class FromPixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, pixels):
            return self.network(2 * pixels - 1)

    return FromPixels().eval()


def losses(predict, images, labels):
    with torch.no_grad():
        return F.cross_entropy(predict(images).double(), labels, reduction="none")


# torchattacks computes the loss in float32, where it is flat if a network is confident, as this one is on some images.
# It is run in float64 instead.
@pytest.mark.parametrize("eps", [0.01, EPS, 0.3])
def test_fgsm_equals_torchattacks(predict, images, labels, eps):
    ours = fgsm(predict, images, labels, eps)
    expected = torchattacks.FGSM(predict.double(), eps=eps)(images.double(), labels)
    assert torch.allclose(fgsm(predict, images.double(), labels, eps), expected, atol=1e-9)
    # Our attack in float32 is the same, except for a pixel whose gradient is almost 0.
    assert torch.isclose(ours.double(), expected, atol=1e-6).double().mean() > 0.999


@pytest.mark.parametrize(("eps", "steps"), [(0.01, 10), (EPS, 1), (EPS, 10)])
def test_pgd_equals_torchattacks_from_the_same_start(predict, images, labels, eps, steps):
    predict = predict.double()
    images = images.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = torchattacks.PGD(predict, eps=eps, alpha=2.5 * eps / steps, steps=steps)(images, labels)
        torch.manual_seed(5)
        start = torch.empty_like(images).uniform_(-eps, eps)
    assert torch.allclose(pgd(predict, images, labels, eps, steps, start), expected, atol=1e-9)


@pytest.mark.parametrize("eps", [0.01, EPS, 0.3])
def test_attacks_keep_within_eps_and_the_range_and_raise_the_loss(predict, images, labels, eps):
    clean = losses(predict, images, labels).mean()
    start = random_start(images, eps, SEEDS)
    assert 0.95 * eps < start.abs().max() <= eps + 1e-7
    assert abs(float(start.mean())) < 0.05 * eps
    one_step = fgsm(predict, images, labels, eps)
    many = pgd(predict, images, labels, eps, 10, start)
    for attacked in (one_step, many):
        assert (attacked - images).abs().max() <= eps + 1e-6
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert not attacked.requires_grad
        assert losses(predict, attacked, labels).mean() > clean
    assert losses(predict, many, labels).mean() >= losses(predict, one_step, labels).mean()


def test_attacks_leave_nothing_behind(predict, images, labels):
    before = copy.deepcopy(predict.state_dict())
    state = torch.get_rng_state()
    pixels = images.clone()
    with torch.no_grad():  # an evaluation may call them so
        fgsm(predict, images, labels, EPS)
        pgd(predict, images, labels, EPS, 2, random_start(images, EPS, SEEDS))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, pixels)
    assert not images.requires_grad
    assert all(p.grad is None and p.requires_grad for p in predict.parameters())
    assert all(torch.equal(value, before[key]) for key, value in predict.state_dict().items())


def test_a_sample_is_attacked_on_its_own(predict, images, labels):
    together = pgd(predict, images, labels, EPS, 5, random_start(images, EPS, SEEDS))
    part = slice(7, 10)
    alone = pgd(predict, images[part], labels[part], EPS, 5, random_start(images[part], EPS, SEEDS[part]))
    assert torch.equal(random_start(images[part], EPS, SEEDS[part]), random_start(images, EPS, SEEDS)[part])
    assert torch.isclose(alone, together[part], atol=1e-6).double().mean() > 0.99


def test_a_confident_network_is_attacked_too():
    # In float32 the probability of the first class is 1, and the loss is flat.
    def predict(images):
        first = 25 + images.flatten(1).sum(1)
        return torch.stack([first, torch.zeros_like(first)], dim=1)

    image = torch.full((1, 1, 2, 2), 0.5)
    label = torch.tensor([0])
    assert torch.allclose(fgsm(predict, image, label, 0.25), image - 0.25)
