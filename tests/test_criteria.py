"""Every criterion compared with its definition on networks assembled by hand, and the lookup of criteria."""

import copy
import re
from itertools import combinations

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

import sglp
from sglp.errors import ScoringError, SGLPError
from sglp.running import backward, call, count_passes
from sglp.scoring.criteria.gradnorm import GradNorm
from sglp.scoring.methods import criterion_names, find_criterion
from sglp.scoring.methods import sglp as sglp_method
from sglp.surgery.random_weights import init_seed

CRITERIA = pytest.mark.parametrize("name", criterion_names())
SETS = [((1, 2, 3), (), ()), ((1,), (2, 3), ()), ((5,), (6,), (1, 3)), ((), (8, 9), (2,))]


@pytest.fixture
def case(network, digits):
    return cases.cnn(network, digits)


def criterion_of(name, case, seed=0, inits=1, batches=None):
    batches = case.batches if batches is None else batches
    return find_criterion(name)(case.network, case.layers, batches, cases_loss, seed, inits)


def cases_loss(output, target):
    return F.cross_entropy(cases.logits_of(output).flatten(0, -2), target.flatten())


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_loss_is_minus_the_loss_of_the_pruned_network(case, sets):
    kept, removed, already_removed = sets
    assert criterion_of("loss", case)(kept, removed, already_removed) == pytest.approx(
        -cases.loss(case, [*removed, *already_removed]), rel=1e-9
    )


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_cka_output_is_the_cka_of_the_features(case, sets):
    kept, removed, already_removed = sets
    expected = 1 - cases.change(case, [*removed, *already_removed])
    assert criterion_of("cka_output", case)(kept, removed, already_removed) == pytest.approx(expected, abs=1e-9)


def fitted(case, removed):
    """Yield, for each batch, the network without these layers and with the statistics of the batch, and the batch."""
    for batch in case.batches:
        small = case.without(removed)
        sglp.recalibrate(small, [batch])
        for module in small.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()  # train mode uses the biased variance of the batch, running statistics the unbiased one
        yield small, batch


def fitted_loss(networks):
    """Compute the mean loss at the best scale of each batch on a fine grid, with a normal prior of its logarithm."""
    losses = []
    for small, (inputs, target) in networks:
        logits = cases.run(small, inputs).flatten(0, -2)
        logarithms = torch.arange(-8, 8, 0.005, dtype=torch.float64)
        fits = [F.cross_entropy(logits * a.exp(), target.flatten()) + a**2 / 2 / len(logits) for a in logarithms]
        losses.append(min(fits).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_fitted_loss_is_the_loss_with_fresh_statistics_at_the_best_temperature(case, sets):
    kept, removed, already_removed = sets
    expected = -fitted_loss(fitted(case, [*removed, *already_removed]))
    assert criterion_of("fitted_loss", case)(kept, removed, already_removed) == pytest.approx(expected, abs=2e-5)
    assert expected > criterion_of("loss", case)(kept, removed, already_removed)


def test_fitted_loss_fits_the_scale_where_there_is_no_batch_norm():
    case = cases.llama()
    networks = [(case.without([1, 2, 4]), batch) for batch in case.batches]
    assert criterion_of("fitted_loss", case)((0,), (1, 2), (4,)) == pytest.approx(-fitted_loss(networks), abs=2e-5)


def scaled(case, factor):
    with torch.no_grad():
        case.network.linear.weight.mul_(factor)
        case.network.linear.bias.mul_(factor)


def test_fitted_loss_of_many_samples_hardly_depends_on_the_scale_of_the_logits(case, digits):
    batches = [(digits[0][:300].double(), digits[1][:300])]
    fits, plain = [], []
    for factor in (1, 0.1, 30):
        scaled(case, factor)
        fits.append(criterion_of("fitted_loss", case, batches=batches)((), (2, 5), ()))
        plain.append(criterion_of("loss", case, batches=batches)((), (2, 5), ()))
    assert np.ptp(fits) < 0.02 * np.ptp(plain)


def test_fitted_loss_distinguishes_networks_that_make_no_mistake(case):
    """A larger scale alone would bring the loss of all networks to zero; the less scaling is needed, the better."""
    (small, (inputs, _)), *_ = fitted(case, [2])
    faultless = [(inputs, cases.run(small, inputs).argmax(-1))]
    scores = []
    for _ in range(4):
        scores.append(criterion_of("fitted_loss", case, batches=faultless)((), (2,), ()))
        scaled(case, 1.5)
    assert scores == sorted(set(scores))
    assert scores[-1] < 0


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_fitted_cka_is_the_cka_of_the_features_with_fresh_statistics(case, sets):
    kept, removed, already_removed = sets
    terms = []
    for (dense, (inputs, _)), (small, _) in zip(
        fitted(case, []), fitted(case, [*removed, *already_removed]), strict=True
    ):
        x, y = cases.features(dense, inputs), cases.features(small, inputs)
        terms.append([cases.hsic(x, y), cases.hsic(x, x), cases.hsic(y, y)])
    xy, xx, yy = np.mean(terms, axis=0)
    assert criterion_of("fitted_cka", case)(kept, removed, already_removed) == pytest.approx(
        xy / np.sqrt(xx * yy), abs=1e-9
    )


def test_fitted_cka_is_cka_output_where_there_is_no_batch_norm():
    case = cases.llama()
    assert criterion_of("fitted_cka", case)((0,), (1, 2), (4,)) == criterion_of("cka_output", case)((0,), (1, 2), (4,))


def test_criteria_of_the_pruned_network_work_with_tokens():
    case = cases.llama()
    assert criterion_of("loss", case)((0,), (1, 2), (4,)) == pytest.approx(-cases.loss(case, [1, 2, 4]), rel=1e-9)
    assert criterion_of("cka_output", case)((0,), (1, 2), (4,)) == pytest.approx(
        1 - cases.change(case, [1, 2, 4]), abs=1e-9
    )


def synflow(network, x):
    """Compute SynFlow by `torch.autograd.grad`, on a copy with absolute weights and identities for batch norms."""
    network = copy.deepcopy(network).double().eval()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    for parameter in network.parameters():
        parameter.data = parameter.data.abs()
        parameter.requires_grad_(True)
    weights = [p for p in network.parameters() if p.dim() > 1]
    gradients = torch.autograd.grad(network(torch.ones_like(x[:1], dtype=torch.float64)).sum(), weights)
    return sum((w * g).sum() for w, g in zip(weights, gradients, strict=True)).item()


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_synflow_is_the_flow_through_the_pruned_network(case, sets):
    kept, removed, already_removed = sets
    expected = synflow(case.without([*removed, *already_removed]), case.batches[0][0])
    assert criterion_of("synflow", case)(kept, removed, already_removed) == pytest.approx(expected, rel=1e-12)


def test_synflow_lets_biases_flow_but_does_not_count_them(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model.requires_grad_(False)
    x = digits[0][:5].flatten(1)
    layers = sglp.find_layers(model, x)
    score = find_criterion("synflow")(model, layers, [(x, None)])((), (), ())
    assert score == pytest.approx(synflow(model, x), rel=1e-12)
    assert not any(p.requires_grad for p in model.parameters())
    for module in model[::2]:
        module.bias.data.zero_()
    assert find_criterion("synflow")(model, layers, [(x, None)])((), (), ()) < score


def test_synflow_refuses_token_ids():
    case = cases.llama()
    with pytest.raises(ScoringError, match="needs real-valued inputs, not token ids"):
        criterion_of("synflow", case)


def assembled(case, kept, seed):
    """Build a random network with trained weights in some layers, in double precision."""
    random_network = sglp.build(
        "sglp.networks.cifar_resnet:resnet", {"depth": 20, "in_channels": 1}, seed=init_seed(seed)
    ).double()
    for path in [path for i in kept for path in case.layers[i].modules]:
        random_network.get_submodule(path).load_state_dict(case.network.get_submodule(path).state_dict())
    return random_network


def gradients(network, x, target, left_out=()):
    """Compute the gradients of the loss in train mode, by parameter name, without the layers that are left out."""
    network = copy.deepcopy(network).train()
    for path in left_out:
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(F.cross_entropy(network(x), target), list(named.values())), strict=True))


@pytest.mark.parametrize(("kept", "already_removed"), [((), ()), ((2, 3), ()), ((5, 6), (1, 2))], ids=str)
def test_gradnorm_sum_adds_the_norms_of_convolutions_and_linear_layers(case, kept, already_removed):
    hand_built = assembled(case, kept, seed=4)
    weights = {f"{path}.weight" for path, m in hand_built.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    expected = []
    for batch in case.batches:
        by_name = gradients(hand_built, *batch, left_out=[case.layers[i].name for i in already_removed])
        expected.append(sum(g.norm().item() for name, g in by_name.items() if name in weights))
    assert criterion_of("gradnorm_sum", case, seed=4)(kept, (), already_removed) == pytest.approx(
        np.mean(expected), rel=1e-9
    )


def test_gradnorm_sum_recognises_other_linear_layers():
    """GPT-2's linear layers have a class of their own, and its output shares the embedding's weights."""
    config = hf.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, n_positions=16, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    network = hf.GPT2LMHeadModel(config)
    ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "use_cache": False}
    layers = sglp.find_layers(network, inputs)
    with torch.random.fork_rng():
        torch.manual_seed(init_seed(3))
        random_network = hf.GPT2LMHeadModel(config).train()
    random_network.transformer.h[1].load_state_dict(network.transformer.h[1].state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(3)  # for dropout
        cases_loss(random_network(**inputs), ids).backward()
    named = {name: p.grad.norm().item() for name, p in random_network.named_parameters() if p.ndim > 1}
    assert {"transformer.wpe.weight", "transformer.wte.weight"} < named.keys()
    del named["transformer.wpe.weight"]
    criterion = find_criterion("gradnorm_sum")(network, layers, [(inputs, ids)], cases_loss, 3, 1)
    assert criterion((1,)) == pytest.approx(sum(named.values()), rel=1e-5)


def test_with_the_leak_trained_weights_accumulate(case):
    criterion, x, target = criterion_of("gradnorm_leak", case, seed=4, batches=case.batches[:1]), *case.batches[0]
    hand_built = assembled(case, (), seed=4)
    expected = []
    chain = [(1, 2), (2, 3), (), (1, 3)]
    for kept in chain:
        for path in [path for i in kept for path in case.layers[i].modules]:
            hand_built.get_submodule(path).load_state_dict(case.network.get_submodule(path).state_dict())
        expected.append(sum(g.square().sum() for g in gradients(hand_built, x, target).values()).sqrt().item())
    assert [criterion(kept) for kept in chain] == pytest.approx(expected, rel=1e-9)
    clean = criterion_of("gradnorm", case, seed=4, batches=case.batches[:1])
    assert clean(chain[0]) == pytest.approx(expected[0], rel=1e-9)
    assert clean(chain[1]) != pytest.approx(expected[1], rel=1e-3)
    # All three layers have been trained since the second combination.
    assert expected[3] == pytest.approx(expected[1], rel=1e-9)


def test_random_is_uniform_and_depends_only_on_the_seed_and_the_set():
    sets = list(combinations(range(12), 4))
    draws = np.array([find_criterion("random")(None, [], [], seed=3)(kept) for kept in sets])
    assert len(set(draws)) == len(sets) == 495
    again = find_criterion("random")(None, [], [], seed=3)
    assert [again(kept) for kept in sets[::-1]] == list(draws[::-1])
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / 495) ** 0.5
    # The Kolmogorov-Smirnov distance from the uniform distribution, at a level of 1 in 10,000.
    assert np.abs(np.sort(draws) - (np.arange(495) + 0.5) / 495).max() < 2.2 / 495**0.5
    first = [max(sets[:10], key=find_criterion("random")(None, [], [], seed=seed)) for seed in range(2000)]
    counts = [first.count(kept) for kept in sets[:10]]
    assert all(abs(count - 200) < 4.5 * (2000 * 0.1 * 0.9) ** 0.5 for count in counts)


@pytest.mark.parametrize("search", ["independent", "sequential"])
def test_segments_are_searched_independently_or_sequentially(case, search):
    budget, lost, expected = [3, 2, 1], [], {}
    for number, (first, last) in enumerate(case.segments):
        inside = range(first, last + 1)
        always_kept = [i for i in inside if not case.layers[i].removable]
        removable = [i for i in inside if case.layers[i].removable]
        scores = {}
        for chosen in combinations(removable, budget[number] - len(always_kept)):
            removed = [i for i in removable if i not in chosen]
            scores[number, tuple(sorted((*always_kept, *chosen)))] = -cases.loss(case, [*removed, *lost])
        expected |= scores
        if search == "sequential":
            lost += sorted({*removable} - {*max(scores, key=scores.get)[1]})
    scored = sglp.score_combinations(
        *(case.network, case.layers, case.segments, budget, case.batches),
        criterion=find_criterion("loss"),
        search=search,
    )
    assert {(row.segment, row.kept): row.score for row in scored} == pytest.approx(expected, rel=1e-9)
    assert (len(lost) == 4) == (search == "sequential")


def test_a_sequential_search_differs_from_an_independent_one(case):
    rows = {
        search: sglp.score_combinations(
            *(case.network, case.layers, case.segments, [3, 2, 1], case.batches),
            criterion=find_criterion("loss"),
            search=search,
        )
        for search in ("independent", "sequential")
    }
    independent, sequential = ([row.score for row in scored if row.segment == 2] for scored in rows.values())
    assert independent != sequential
    independent, sequential = ([row for row in scored if row.segment == 0] for scored in rows.values())
    assert independent == sequential


def test_a_users_own_criterion_is_found_by_its_dotted_name(case, tmp_path, monkeypatch):
    (tmp_path / "users_criteria.py").write_text(
        "def latest(network, layers, batches, loss, seed, random_inits):\n"
        "    return lambda kept, removed, already_removed: sum(kept) - 100 * len(already_removed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan, rows = sglp_method(
        *(case.network, case.layers, case.segments, None, case.batches, 7, 0),
        criterion=find_criterion("users_criteria:latest"),
        search="independent",
    )
    assert case.removed_by(plan) == {1, 5, 8}
    assert all(row.score == sum(row.kept) for row in rows)


@pytest.mark.parametrize("name", ["grad_norm", "GradNorm", "__init__", "gradnorm "])
def test_unknown_criteria_are_refused_with_all_names(name):
    names = ", ".join(criterion_names())
    message = f"score.criterion={name} is unknown: it must be {names} or package.module:function"
    with pytest.raises(SGLPError, match=f"^{re.escape(message)}$"):
        find_criterion(name)


def test_every_criterion_is_found_by_its_file():
    names = {
        "fitted_loss",
        "fitted_cka",
        "cka_output",
        "gradnorm",
        "gradnorm_leak",
        "gradnorm_sum",
        "loss",
        "random",
        "reconstruction_error",
        "synflow",
    }
    assert set(criterion_names()) == names
    assert find_criterion("gradnorm") is GradNorm
    assert all(callable(find_criterion(name)) for name in names)


def test_passes_are_counted_inside_the_context():
    network = nn.Linear(2, 1)
    x = torch.ones(3, 2)
    call(network, x)
    with count_passes() as outer:
        call(network, x)
        with count_passes() as inner:
            backward(call(network, x).sum())
        call(network, {"input": x})
    call(network, x)
    assert (outer.forward, outer.backward) == (3, 1)
    assert (inner.forward, inner.backward) == (1, 1)


def test_an_error_ends_the_counting():
    with pytest.raises(KeyboardInterrupt), count_passes() as passes:
        raise KeyboardInterrupt
    call(nn.Identity(), torch.ones(1))
    assert passes.forward == 0


@CRITERIA
def test_an_empty_list_of_batches_is_refused_where_one_is_needed(case, name):
    if name == "random":
        assert criterion_of(name, case, batches=[])((1,)) == criterion_of(name, case)((1,))
        return
    with pytest.raises(ScoringError, match=r"^there is no batch to score layers with$"):
        criterion_of(name, case, batches=[])


@CRITERIA
def test_scores_that_are_not_finite_are_refused(case, name):
    with torch.no_grad():
        case.network.layer2[1].conv1.weight.fill_(torch.nan)
    if name == "random":
        return
    with pytest.raises(SGLPError, match="finite"):
        criterion_of(name, case)((5,), (6,), ())


@CRITERIA
def test_the_network_and_the_random_state_are_unchanged(case, name):
    network = case.network
    network.layer2.train()
    network.linear.weight.grad = torch.full_like(network.linear.weight, 7)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    torch.manual_seed(11)
    random_state = torch.get_rng_state()
    first = criterion_of(name, case)
    scores = [first(*sets) for sets in SETS]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert (network.linear.weight.grad == 7).all()
    assert all(p.grad is None for key, p in network.named_parameters() if key != "linear.weight")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())
    torch.manual_seed(12)
    again = criterion_of(name, case, batches=iter(case.batches))
    assert [again(*sets) for sets in SETS] == scores
    assert len(set(scores)) > 2


def test_gradients_are_computed_even_under_no_grad(case):
    def scores():
        return [criterion_of(name, case)((1, 2), (3,), ()) for name in ("gradnorm", "synflow")], case.run("taylor", 6)

    with torch.no_grad():
        without_gradients = scores()
    assert without_gradients == scores()


@CRITERIA
def test_the_order_of_the_sets_matters_only_with_the_leak(case, name):
    criterion = criterion_of(name, case)
    reversed_order = criterion_of(name, case)
    same = [criterion(*sets) for sets in SETS] == [reversed_order(*sets) for sets in SETS[::-1]][::-1]
    assert same == (name != "gradnorm_leak")


def test_constant_features_are_named(case):
    with torch.no_grad():
        case.network.layer3[2].conv2.weight.zero_()
        case.network.layer3[2].bn2.bias.fill_(-1e3)  # its ReLU gives zeros
        case.network.layer3[2].bn2.running_mean.zero_()
    message = r"the output of the network is the same for all samples \(or for all but one\): its similarity"
    with pytest.warns(sglp.errors.DeadLayerWarning, match=message):
        criterion_of("cka_output", case)((8,), (9,), ())
