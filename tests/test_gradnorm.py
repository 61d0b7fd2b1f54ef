"""GradNorm compared with autograd on networks assembled by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from sglp.errors import ArchitectureError, ScoringError
from sglp.loss import IGNORED
from sglp.scoring.criteria.gradnorm import GradNorm
from sglp.surgery.random_weights import init_seed, reinitialized

FACTORY, KWARGS = "sglp.networks.cifar_resnet:resnet", {"depth": 20, "in_channels": 1}


@pytest.fixture
def batches(digits):
    return [(digits[0][start : start + 16], digits[1][start : start + 16]) for start in (0, 16)]


def gradient_norm(network, x, target):
    """Compute sqrt of the sum of all squared gradients by autograd, in train mode."""
    loss = F.cross_entropy(network.train()(x), target)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return sum(g.double().square().sum() for g in gradients).sqrt().item()


def by_hand(trained, layers, kept, seed):
    """Build a random network with trained weights in some layers."""
    fresh = sglp.build(FACTORY, KWARGS, seed=init_seed(seed))
    for path in [path for i in kept for path in layers[i].modules]:
        fresh.get_submodule(path).load_state_dict(trained.get_submodule(path).state_dict())
    return fresh


def perceptron(*between):
    """Build a user's network, whose trained weights are twice the drawn ones."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), *between, nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    for parameter in model.parameters():
        parameter.data *= 2
    return model, sglp.find_layers(model, torch.zeros(2, 64))


def flat(batches):
    return [(x.flatten(1), target) for x, target in batches]


@pytest.mark.parametrize("kept", [(), (0,), (2, 3), (1, 4, 7, 9), tuple(range(10))], ids=str)
def test_the_score_equals_autograd_on_a_network_built_by_hand(network, layers, batches, kept):
    expected = gradient_norm(by_hand(network, layers, kept, seed=5), *batches[0])
    assert GradNorm(network, layers, batches[:1], seed=5)(kept) == pytest.approx(expected, rel=1e-6)


def test_the_score_is_the_mean_over_random_networks_and_batches(network, layers, batches):
    norms = [gradient_norm(by_hand(network, layers, (2, 3), seed), *batch) for seed in (7, 8) for batch in batches]
    score = GradNorm(network, layers, batches, seed=7, random_inits=2)((2, 3))
    assert score == pytest.approx(sum(norms) / 4, rel=1e-6)


def test_scores_do_not_depend_on_the_order_of_evaluation(network, layers, batches):
    criterion = GradNorm(network, layers, batches, random_inits=2)
    first = [criterion(kept) for kept in ((1, 2), (4, 5, 6), (), (9,))]
    again = [criterion(kept) for kept in ((9,), (), (4, 5, 6), (1, 2))]
    assert first == again[::-1]
    assert len(set(first)) == 4


def test_the_network_and_the_random_state_are_unchanged(network, layers, batches):
    network.layer2.train()
    network.linear.weight.grad = torch.ones_like(network.linear.weight)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    GradNorm(network, layers, batches)((1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert (network.linear.weight.grad == 1).all()
    assert all(p.grad is None for name, p in network.named_parameters() if name != "linear.weight")


def test_the_callers_random_state_does_not_affect_the_score(batches):
    model, layers = perceptron(nn.Dropout(0.5))
    torch.manual_seed(1)
    score = GradNorm(model, layers, flat(batches))((0,))
    torch.manual_seed(2)
    assert GradNorm(model, layers, flat(batches))((0,)) == score


def test_a_network_with_dropout_gets_the_same_score_twice(batches):
    model, layers = perceptron(nn.Dropout(0.5))
    criterion = GradNorm(model, layers, flat(batches))
    assert criterion((0,)) == criterion((0,))
    without_dropout = GradNorm(*perceptron(), flat(batches))
    assert criterion((0,)) != without_dropout((0,))


def test_a_users_network_needs_no_factory(batches):
    """If all layers are kept, nothing is random: the score is that of the network itself."""
    model, layers = perceptron()
    expected = gradient_norm(copy.deepcopy(model), *flat(batches)[0])
    criterion = GradNorm(model, layers, flat(batches)[:1])
    assert criterion(range(len(layers))) == pytest.approx(expected, rel=1e-6)
    assert criterion((0,)) != pytest.approx(expected, rel=0.01)


def test_a_users_network_with_attention_needs_no_factory():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    model = nn.Sequential(copy.deepcopy(block), copy.deepcopy(block), nn.Flatten(), nn.Linear(24, 5))
    x, target = torch.randn(4, 3, 8), torch.arange(4)
    layers = sglp.find_layers(model, x)
    criterion = GradNorm(model, layers, [(x, target)])
    assert [layer.name for layer in layers] == ["0", "1"]
    assert len({criterion(()), criterion((0,)), criterion((1,)), criterion((0, 1))}) == 4


def test_frozen_parameters_count_too(batches):
    model, layers = perceptron()
    expected = GradNorm(model, layers, flat(batches))((0, 1))
    model.requires_grad_(False)
    assert GradNorm(model, layers, flat(batches))((0, 1)) == expected


def test_parameters_that_can_not_be_reinitialised_are_named():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(12))

        def forward(self, x):
            return x + self.by

    model, layers = perceptron(Shift())
    with pytest.raises(ArchitectureError, match=r"^2 has parameters but no reset_parameters\(\): build the network"):
        GradNorm(model, layers, [(torch.zeros(2, 64), torch.tensor([0, 1]))])


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_parameters_that_are_not_reinitialised_are_named():
    model, layers = perceptron(torch.nn.utils.weight_norm(nn.Linear(12, 12)))
    with pytest.raises(
        ArchitectureError, match=r"^2\.weight_g is not changed by its module's reset_parameters\(\): bu"
    ):
        GradNorm(model, layers, [(torch.zeros(2, 64), torch.tensor([0, 1]))])


def test_random_weights_differ_from_the_initial_ones():
    network = sglp.build(FACTORY, KWARGS, seed=0)
    drawn = dict(reinitialized(network, seed=0).named_parameters())
    assert not any(torch.equal(drawn[name], first) for name, first in network.named_parameters() if first.ndim > 1)
    model, _ = perceptron()  # drawn with the seed 3, and doubled
    pairs = zip(reinitialized(model, seed=3).parameters(), model.parameters(), strict=True)
    assert not any(torch.equal(2 * drawn, first) for drawn, first in pairs)


def test_a_pruned_network_is_scored_like_one_built_small(network, layers, batches):
    """Its re-initialised network has the dense network's draws for the layers that were kept."""
    names = [layer.name for layer in layers]
    pruned = sglp.prune(network, sglp.Plan([n for n in names if n != "layer1.1"], ["layer1.1"]))
    score = GradNorm(pruned, sglp.find_layers(pruned, batches[0][0]), batches[:1], seed=5)((1, 2))
    hand_built = by_hand(network, layers, (1, 3), seed=5)
    hand_built.layer1[1] = nn.Identity()
    assert score == pytest.approx(gradient_norm(hand_built, *batches[0]), rel=1e-6)


def test_a_users_own_loss_is_used(network, layers, batches):
    def doubled(output, target):
        return 2 * F.cross_entropy(output, target)

    plain = GradNorm(network, layers, batches)((1,))
    assert GradNorm(network, layers, batches, loss=doubled)((1,)) == pytest.approx(2 * plain, rel=1e-5)


def test_no_batch_is_refused(network, layers):
    with pytest.raises(ScoringError, match="no batch"):
        GradNorm(network, layers, [])


def test_a_language_models_score_equals_autograd():
    from language import tiny_llama

    trained, ids = tiny_llama(seed=1), torch.randint(259, (3, 12), generator=torch.Generator().manual_seed(0))
    target = torch.cat([ids[:, 1:], torch.full((3, 1), IGNORED)], dim=1)
    inputs = {"input_ids": ids, "use_cache": False}
    layers = sglp.find_layers(trained, inputs)
    criterion = GradNorm(trained, layers, [(inputs, target)], seed=4)
    for kept in ((), (1, 2), (0, 1, 2, 3)):
        fresh = tiny_llama(seed=init_seed(4)).train()
        for i in kept:
            fresh.model.layers[i].load_state_dict(trained.model.layers[i].state_dict())
        loss = fresh(**inputs, labels=ids).loss
        gradients = torch.autograd.grad(loss, list(fresh.parameters()))
        expected = sum(g.double().square().sum() for g in gradients).sqrt().item()
        assert criterion(kept) == pytest.approx(expected, rel=1e-6)


def test_gradients_are_dropped_as_soon_as_their_norm_is_known(network, layers, batches):
    criterion = GradNorm(network, layers, batches)
    (random_network,) = criterion.random_networks
    own, alive = list(random_network.network.parameters()), []
    for parameter in own:
        parameter.register_post_accumulate_grad_hook(
            lambda p: alive.append(sum(other.grad is not None for other in own))
        )
    criterion((1, 2))
    assert len(alive) == len(own) * len(batches)
    assert set(alive) == {0}, "hooks run in order: the gradient has been dropped when this one runs"


def test_trained_weights_are_borrowed_and_not_copied(network, layers, batches):
    (random_network,) = GradNorm(network, layers, batches).random_networks
    before = {name: p.data_ptr() for name, p in random_network.network.named_parameters()}
    random_network.load_trained([2])
    borrowed = {name for name, p in random_network.network.named_parameters() if p.data_ptr() != before[name]}
    trained = dict(network.named_parameters())
    assert borrowed == {name for name in trained if name.startswith(f"{layers[2].name}.")}
    assert all(random_network.network.get_parameter(name).data_ptr() == trained[name].data_ptr() for name in borrowed)
    random_network.reset()
    assert {name: p.data_ptr() for name, p in random_network.network.named_parameters()} == before


def test_the_leak_is_refused_with_several_processes(network, layers, digits, monkeypatch):
    monkeypatch.setattr("sglp.distributed.processes.count", lambda: 2)
    with pytest.raises(ScoringError, match="score in one process"):
        sglp.find_criterion("gradnorm_leak")(network, layers, [digits])


def test_layers_that_share_their_parameters_are_trained_together(batches):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), *(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 10))
    network[4].weight, network[4].bias = network[2].weight, network[2].bias
    x, target = flat(batches)[0]
    criterion = GradNorm(network, sglp.find_layers(network, x), [(x, target)], seed=4)
    random_network = reinitialized(network, seed=4)

    def score(*numbers):
        by_hand = copy.deepcopy(random_network)
        for number in numbers:
            by_hand[number].load_state_dict(network[number].state_dict())
        return pytest.approx(gradient_norm(by_hand, x, target), rel=1e-6)

    assert len(set(random_network.parameters())) == 8
    names = ["0+1", "2", "3", "4", "5"]
    assert [layer.name for layer in sglp.find_layers(network, x)] == names
    for kept, numbers in (([3], (2,)), ([2], (3,)), ([1, 2], (2, 3)), ([], ()), ([1], (4,)), ([3], (4,))):
        assert criterion(kept) == score(*numbers)


def test_parameters_that_the_factory_freezes_count_too(batches, monkeypatch):
    def frozen():
        network = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 10))
        network[2].requires_grad_(False)
        network.register_parameter("count", nn.Parameter(torch.tensor(3), requires_grad=False))
        return network

    monkeypatch.setattr("sglp.networks.cifar_resnet.frozen", frozen, raising=False)
    network = sglp.build("sglp.networks.cifar_resnet:frozen", {}, seed=0)
    x, target = flat(batches)[0]
    layers = sglp.find_layers(network, x)
    free = frozen()
    free[2].requires_grad_(True)
    free.load_state_dict(reinitialized(network, seed=0).state_dict())
    gradients = torch.autograd.grad(F.cross_entropy(free(x), target), [p for p in free.parameters() if p.numel() > 1])
    expected = sum(g.double().square().sum() for g in gradients).sqrt().item()
    assert GradNorm(network, layers, [(x, target)])([]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("change", ["head", "stride", "none"])
def test_a_network_that_was_changed_after_building_is_scored_as_it_is(digits, change):
    network = sglp.build(FACTORY, KWARGS, seed=0)
    if change == "head":
        network.linear = nn.Linear(network.linear.in_features, 2)
    if change == "stride":
        network.conv1.stride = (2, 2)
    random_network, x = reinitialized(network, seed=0), digits[0][:8]
    assert repr(random_network) == repr(network)
    assert random_network(x).shape == network(x).shape
    again = sglp.build(FACTORY, KWARGS, seed=init_seed(0))
    same = all(
        torch.equal(a, b) for a, b in zip(random_network.layer1.parameters(), again.layer1.parameters(), strict=True)
    )
    assert same == (change == "none"), "the factory is used only if it makes this network"
    assert not torch.equal(random_network.conv1.weight, network.conv1.weight)
