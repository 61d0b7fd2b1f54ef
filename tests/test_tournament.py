"""The tournament against its rule carried out by hand."""

import pytest
import torch
from networks import noise

import sglp
from sglp.errors import ScoringError
from sglp.scoring.baselines.tournament import tournament
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.scoring.methods import find_method


@pytest.fixture
def problem(network, digits):
    """The arguments of a method: a small ResNet, its layers, and six batches of digits."""
    images, targets = digits
    network.eval()
    layers = sglp.find_layers(network, images[:2])
    batches = [(images[i : i + 16], targets[i : i + 16]) for i in range(0, 96, 16)]
    similarity = torch.eye(len(layers)).numpy()
    return network, layers, [(0, 3), (4, len(layers) - 1)], similarity, batches, len(layers) - 3, 0


def test_the_plan_with_the_lowest_loss_after_reconstruction_is_taken(problem):
    network, layers, segments, similarity, batches, keep, seed = problem
    fitting, held = batches[:-1], batches[-1:]  # a quarter of six batches is one
    expected = {}
    for name in ("sglp", "reconstruction_error", "block_influence"):
        errors = sglp.reconstruction_errors(network, layers, fitting)
        options = {"reconstruction_error": {"errors": errors}, "sglp": {"criterion": FittedLoss}}.get(name, {})
        plan, _ = find_method(name)(network, layers, segments, similarity, batches, keep, seed, **options)
        pruned = sglp.prune(network, plan).eval()
        sglp.reconstruct(network, pruned, plan, fitting, steps=20)
        with torch.no_grad():
            loss = sum(float(torch.nn.functional.cross_entropy(pruned(x), y)) for x, y in held) / len(held)
        expected.setdefault(plan, loss)
    plan, rows = tournament(*problem)
    assert plan == min(expected, key=lambda one: expected[one])
    assert sorted({-row.score for row in rows}) == pytest.approx(sorted(expected.values()), rel=1e-6)
    assert sglp.best_plan(layers, rows) == plan
    for row in rows:
        first, last = segments[row.segment]
        assert all(first <= i <= last for i in row.kept)


def test_the_network_stays_as_it_was_and_the_answer_is_the_same_again(problem):
    before = {name: value.clone() for name, value in problem[0].state_dict().items()}
    first, second = tournament(*problem), tournament(*problem)
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in problem[0].state_dict().items())


def test_a_single_sample_can_not_be_split(problem):
    network, layers, segments, similarity, _, keep, seed = problem
    one = [(noise(1, 1, 8, 8), torch.tensor([3]))]
    with pytest.raises(ScoringError, match="needs at least two samples"):
        tournament(network, layers, segments, similarity, problem[4], keep, seed, reconstruction_batches=one)
