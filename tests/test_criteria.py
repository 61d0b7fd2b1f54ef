"""Every criterion against its definition on networks put together by hand, and how criteria are found and counted."""

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


def made(name, case, seed=0, draws=1, batches=None):
    batches = case.batches if batches is None else batches
    return find_criterion(name)(case.network, case.layers, batches, cases_loss, seed, draws)


def cases_loss(output, target):
    return F.cross_entropy(cases.logits_of(output).flatten(0, -2), target.flatten())


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_loss_is_minus_the_loss_of_what_surgery_leaves(case, sets):
    kept, gone, before = sets
    assert made("loss", case)(kept, gone, before) == pytest.approx(-cases.loss(case, [*gone, *before]), rel=1e-9)


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_cka_output_is_the_cka_of_the_features(case, sets):
    kept, gone, before = sets
    expected = 1 - cases.change(case, [*gone, *before])
    assert made("cka_output", case)(kept, gone, before) == pytest.approx(expected, abs=1e-9)


def fitted(case, gone):
    """The network without these layers, whose batch norms have the statistics of each batch, batch by batch."""
    for batch in case.batches:
        small = case.without(gone)
        sglp.recalibrate(small, [batch])
        for module in small.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()  # of a batch's variance train mode takes the biased one, and the running ones do not
        yield small, batch


def fitted_loss(networks):
    """Every batch's logits have the best scale of a fine grid, whose logarithm is a standard normal number."""
    losses = []
    for small, (inputs, target) in networks:
        logits = cases.run(small, inputs).flatten(0, -2)
        logarithms = torch.arange(-8, 8, 0.005, dtype=torch.float64)
        fits = [F.cross_entropy(logits * a.exp(), target.flatten()) + a**2 / 2 / len(logits) for a in logarithms]
        losses.append(min(fits).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_fitted_loss_is_the_loss_with_fresh_statistics_at_the_best_temperature(case, sets):
    kept, gone, before = sets
    expected = -fitted_loss(fitted(case, [*gone, *before]))
    assert made("fitted_loss", case)(kept, gone, before) == pytest.approx(expected, abs=2e-5)
    assert expected > made("loss", case)(kept, gone, before)


def test_fitted_loss_fits_the_scale_where_there_is_no_batch_norm():
    case = cases.llama()
    networks = [(case.without([1, 2, 4]), batch) for batch in case.batches]
    assert made("fitted_loss", case)((0,), (1, 2), (4,)) == pytest.approx(-fitted_loss(networks), abs=2e-5)


def scaled(case, factor):
    with torch.no_grad():
        case.network.linear.weight.mul_(factor)
        case.network.linear.bias.mul_(factor)


def test_fitted_loss_of_many_samples_hardly_sees_the_scale_of_the_logits(case, digits):
    batches = [(digits[0][:300].double(), digits[1][:300])]
    fits, plain = [], []
    for factor in (1, 0.1, 30):
        scaled(case, factor)
        fits.append(made("fitted_loss", case, batches=batches)((), (2, 5), ()))
        plain.append(made("loss", case, batches=batches)((), (2, 5), ()))
    assert np.ptp(fits) < 0.02 * np.ptp(plain)


def test_fitted_loss_tells_networks_apart_that_make_no_mistake(case):
    """A larger scale alone would bring the loss of all of them to zero; the less of it is needed, the better."""
    (small, (inputs, _)), *_ = fitted(case, [2])
    faultless = [(inputs, cases.run(small, inputs).argmax(-1))]
    scores = []
    for _ in range(4):
        scores.append(made("fitted_loss", case, batches=faultless)((), (2,), ()))
        scaled(case, 1.5)
    assert scores == sorted(set(scores))
    assert scores[-1] < 0


@pytest.mark.parametrize("sets", SETS, ids=str)
def test_fitted_cka_is_the_cka_of_the_features_with_fresh_statistics(case, sets):
    kept, gone, before = sets
    terms = []
    for (dense, (inputs, _)), (small, _) in zip(fitted(case, []), fitted(case, [*gone, *before]), strict=True):
        x, y = cases.features(dense, inputs), cases.features(small, inputs)
        terms.append([cases.hsic(x, y), cases.hsic(x, x), cases.hsic(y, y)])
    xy, xx, yy = np.mean(terms, axis=0)
    assert made("fitted_cka", case)(kept, gone, before) == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-9)


def test_fitted_cka_is_cka_output_where_there_is_no_batch_norm():
    case = cases.llama()
    assert made("fitted_cka", case)((0,), (1, 2), (4,)) == made("cka_output", case)((0,), (1, 2), (4,))


def test_criteria_of_the_network_that_is_left_work_with_tokens():
    case = cases.llama()
    assert made("loss", case)((0,), (1, 2), (4,)) == pytest.approx(-cases.loss(case, [1, 2, 4]), rel=1e-9)
    assert made("cka_output", case)((0,), (1, 2), (4,)) == pytest.approx(1 - cases.change(case, [1, 2, 4]), abs=1e-9)


def synflow(network, x):
    """On a copy with absolute weights and identities for batch norms, by `torch.autograd.grad`."""
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
def test_synflow_is_what_flows_through_what_surgery_leaves(case, sets):
    kept, gone, before = sets
    expected = synflow(case.without([*gone, *before]), case.batches[0][0])
    assert made("synflow", case)(kept, gone, before) == pytest.approx(expected, rel=1e-12)


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


def test_synflow_refuses_ids():
    case = cases.llama()
    with pytest.raises(ScoringError, match="needs inputs of real numbers, not of ids"):
        made("synflow", case)


def put_together(case, kept, seed):
    """A random network with the trained weights in some layers, and in the precision of the case."""
    fresh = sglp.build(
        "sglp.networks.cifar_resnet:resnet", {"depth": 20, "in_channels": 1}, seed=init_seed(seed)
    ).double()
    for path in [path for i in kept for path in case.layers[i].modules]:
        fresh.get_submodule(path).load_state_dict(case.network.get_submodule(path).state_dict())
    return fresh


def gradients(network, x, target, left_out=()):
    """Of the loss in train mode, by the parameters' names; none of layers that are left out."""
    network = copy.deepcopy(network).train()
    for path in left_out:
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(F.cross_entropy(network(x), target), list(named.values())), strict=True))


@pytest.mark.parametrize(("kept", "before"), [((), ()), ((2, 3), ()), ((5, 6), (1, 2))], ids=str)
def test_gradnorm_sum_adds_the_norms_of_convolutions_and_linear_layers(case, kept, before):
    hand = put_together(case, kept, seed=4)
    weights = {f"{path}.weight" for path, m in hand.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    expected = []
    for batch in case.batches:
        found = gradients(hand, *batch, left_out=[case.layers[i].name for i in before])
        expected.append(sum(g.norm().item() for name, g in found.items() if name in weights))
    assert made("gradnorm_sum", case, seed=4)(kept, (), before) == pytest.approx(np.mean(expected), rel=1e-9)


def test_gradnorm_sum_knows_linear_layers_by_other_names():
    """GPT-2's are of a class of their own, and its output has the weights of its embedding."""
    config = hf.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, n_positions=16, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    network = hf.GPT2LMHeadModel(config)
    ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "use_cache": False}
    layers = sglp.find_layers(network, inputs)
    with torch.random.fork_rng():
        torch.manual_seed(init_seed(3))
        fresh = hf.GPT2LMHeadModel(config).train()
    fresh.transformer.h[1].load_state_dict(network.transformer.h[1].state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(3)  # that of dropout
        cases_loss(fresh(**inputs), ids).backward()
    named = {name: p.grad.norm().item() for name, p in fresh.named_parameters() if p.ndim > 1}
    assert {"transformer.wpe.weight", "transformer.wte.weight"} < named.keys()
    del named["transformer.wpe.weight"]
    criterion = find_criterion("gradnorm_sum")(network, layers, [(inputs, ids)], cases_loss, 3, 1)
    assert criterion((1,)) == pytest.approx(sum(named.values()), rel=1e-5)


def test_with_the_leak_trained_weights_pile_up(case):
    criterion, x, target = made("gradnorm_leak", case, seed=4, batches=case.batches[:1]), *case.batches[0]
    hand, found = put_together(case, (), seed=4), []
    chain = [(1, 2), (2, 3), (), (1, 3)]
    for kept in chain:
        for path in [path for i in kept for path in case.layers[i].modules]:
            hand.get_submodule(path).load_state_dict(case.network.get_submodule(path).state_dict())
        found.append(sum(g.square().sum() for g in gradients(hand, x, target).values()).sqrt().item())
    assert [criterion(kept) for kept in chain] == pytest.approx(found, rel=1e-9)
    clean = made("gradnorm", case, seed=4, batches=case.batches[:1])
    assert clean(chain[0]) == pytest.approx(found[0], rel=1e-9)
    assert clean(chain[1]) != pytest.approx(found[1], rel=1e-3)
    assert found[3] == pytest.approx(found[1], rel=1e-9)  # all three layers are trained since the second one


def test_random_is_uniform_and_depends_on_the_seed_and_the_set_alone():
    sets = list(combinations(range(12), 4))
    draws = np.array([find_criterion("random")(None, [], [], seed=3)(kept) for kept in sets])
    assert len(set(draws)) == len(sets) == 495
    again = find_criterion("random")(None, [], [], seed=3)
    assert [again(kept) for kept in sets[::-1]] == list(draws[::-1])
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / 495) ** 0.5
    # Kolmogorov and Smirnov's distance from the uniform distribution, at one in 10,000.
    assert np.abs(np.sort(draws) - (np.arange(495) + 0.5) / 495).max() < 2.2 / 495**0.5
    first = [max(sets[:10], key=find_criterion("random")(None, [], [], seed=seed)) for seed in range(2000)]
    counts = [first.count(kept) for kept in sets[:10]]
    assert all(abs(count - 200) < 4.5 * (2000 * 0.1 * 0.9) ** 0.5 for count in counts)


@pytest.mark.parametrize("search", ["independent", "sequential"])
def test_segments_are_taken_alone_or_one_after_another(case, search):
    budget, out, expected = [3, 2, 1], [], {}
    for number, (first, last) in enumerate(case.segments):
        inside = range(first, last + 1)
        always = [i for i in inside if not case.layers[i].removable]
        free = [i for i in inside if case.layers[i].removable]
        scores = {}
        for chosen in combinations(free, budget[number] - len(always)):
            gone = [i for i in free if i not in chosen]
            scores[number, tuple(sorted((*always, *chosen)))] = -cases.loss(case, [*gone, *out])
        expected |= scores
        if search == "sequential":
            out += sorted({*free} - {*max(scores, key=scores.get)[1]})
    scored = sglp.score_combinations(
        *(case.network, case.layers, case.segments, budget, case.batches),
        criterion=find_criterion("loss"),
        search=search,
    )
    assert {(row.segment, row.kept): row.score for row in scored} == pytest.approx(expected, rel=1e-9)
    assert (len(out) == 4) == (search == "sequential")


def test_one_after_another_makes_a_difference(case):
    rows = {
        search: sglp.score_combinations(
            *(case.network, case.layers, case.segments, [3, 2, 1], case.batches),
            criterion=find_criterion("loss"),
            search=search,
        )
        for search in ("independent", "sequential")
    }
    alone, after = ([row.score for row in found if row.segment == 2] for found in rows.values())
    assert alone != after
    first, same = ([row for row in found if row.segment == 0] for found in rows.values())
    assert first == same


def test_a_criterion_of_the_users_own_is_found_by_its_dotted_name(case, tmp_path, monkeypatch):
    (tmp_path / "users_criteria.py").write_text(
        "def latest(network, layers, batches, loss, seed, random_inits):\n"
        "    return lambda kept, gone, before: sum(kept) - 100 * len(before)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan, rows = sglp_method(
        *(case.network, case.layers, case.segments, None, case.batches, 7, 0),
        criterion=find_criterion("users_criteria:latest"),
        search="independent",
    )
    assert case.gone(plan) == {1, 5, 8}
    assert all(row.score == sum(row.kept) for row in rows)


@pytest.mark.parametrize("name", ["grad_norm", "GradNorm", "__init__", "gradnorm "])
def test_unknown_criteria_are_refused_in_one_sentence_with_all_names(name):
    names = ", ".join(criterion_names())
    message = f"score.criterion={name} is unknown: it must be {names} or package.module:function"
    with pytest.raises(SGLPError, match=f"^{re.escape(message)}$"):
        find_criterion(name)


def test_all_criteria_are_found_by_their_files():
    known = {
        "fitted_loss",
        "fitted_cka",
        "cka_output",
        "gradnorm",
        "gradnorm_leak",
        "gradnorm_sum",
        "loss",
        "random",
        "synflow",
    }
    assert set(criterion_names()) == known
    assert find_criterion("gradnorm") is GradNorm
    assert all(callable(find_criterion(name)) for name in known)


def test_passes_are_counted_while_they_are_asked_for():
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


def test_counting_ends_with_an_error():
    with pytest.raises(KeyboardInterrupt), count_passes() as passes:
        raise KeyboardInterrupt
    call(nn.Identity(), torch.ones(1))
    assert passes.forward == 0


@CRITERIA
def test_no_batch_is_refused_where_one_is_needed(case, name):
    if name == "random":
        assert made(name, case, batches=[])((1,)) == made(name, case)((1,))
        return
    with pytest.raises(ScoringError, match=r"^there is no batch to score layers with$"):
        made(name, case, batches=[])


@CRITERIA
def test_scores_that_are_not_finite_are_refused_in_one_sentence(case, name):
    with torch.no_grad():
        case.network.layer2[1].conv1.weight.fill_(torch.nan)
    if name == "random":
        return
    with pytest.raises(SGLPError, match="finite"):
        made(name, case)((5,), (6,), ())


@CRITERIA
def test_the_network_and_the_random_state_are_left_as_they_were(case, name):
    network = case.network
    network.layer2.train()
    network.linear.weight.grad = torch.full_like(network.linear.weight, 7)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = made(name, case)
    scores = [first(*sets) for sets in SETS]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert (network.linear.weight.grad == 7).all()
    assert all(p.grad is None for key, p in network.named_parameters() if key != "linear.weight")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())
    torch.manual_seed(12)
    again = made(name, case, batches=iter(case.batches))
    assert [again(*sets) for sets in SETS] == scores
    assert len(set(scores)) > 2


def test_gradients_are_there_where_the_caller_wants_none(case):
    def found():
        return [made(name, case)((1, 2), (3,), ()) for name in ("gradnorm", "synflow")], case.run("taylor", 6)

    with torch.no_grad():
        without = found()
    assert without == found()


@CRITERIA
def test_the_order_of_the_sets_matters_only_with_the_leak(case, name):
    criterion, turned = made(name, case), made(name, case)
    same = [criterion(*sets) for sets in SETS] == [turned(*sets) for sets in SETS[::-1]][::-1]
    assert same == (name != "gradnorm_leak")


def test_features_that_are_all_the_same_are_named(case):
    with torch.no_grad():
        case.network.layer3[2].conv2.weight.zero_()
        case.network.layer3[2].bn2.bias.fill_(-1e3)  # its ReLU gives zeros
        case.network.layer3[2].bn2.running_mean.zero_()
    message = r"nothing differs between samples \(or one of them alone\) in the output of the network: its similarity"
    with pytest.warns(sglp.errors.DeadLayerWarning, match=message):
        made("cka_output", case)((8,), (9,), ())
