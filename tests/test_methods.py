"""Every method compared with its definition, by brute force on pruned copies, and the contract of all methods."""

import copy
from dataclasses import replace
from itertools import combinations, pairwise

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from sglp.errors import BudgetError, DataError, ScoringError
from sglp.layer import Layer
from sglp.running import count_passes, eval_mode
from sglp.scoring.baselines.angular import best_removals, distances
from sglp.scoring.baselines.taylor import saliences
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.scoring.methods import method_names
from sglp.scoring.ranking import keep_best, remove_one_by_one

WITHOUT_DATA = ("cka_adjacent", "magnitude", "random", "tail")
METHODS = pytest.mark.parametrize("name", method_names())
NOT_BY_SCORE = (
    "sglp",
    "angular",
    "lorp",
    "reconstruction_error",
    "tournament",
)  # what they remove does not have the lowest scores
HOLDING_OUT = ("reconstruction_error", "tournament")  # the last batches
ONE_BY_ONE = pytest.mark.parametrize("name", [n for n in method_names() if n not in NOT_BY_SCORE])
GREEDY = ("block_influence_rescored", "cka_greedy", "loss_greedy")


@pytest.fixture(params=["cnn", "llama"])
def case(request, network, digits):
    return cases.cnn(network, digits) if request.param == "cnn" else cases.llama()


@pytest.fixture(params=["cnn", "llama"])
def quick(request, network, digits):
    """A case in single precision, which is faster, for tests that need no exact numbers."""
    return cases.cnn(network, digits, torch.float32) if request.param == "cnn" else cases.llama()


@pytest.fixture
def cnn(network, digits):
    return cases.cnn(network, digits, torch.float32)


def by_layer(rows):
    return {row.layer: row.score for row in rows}


def lowest(scores, candidates, num_removed):
    return set(sorted(candidates, key=lambda i: scores[i])[:num_removed])


def test_cka_is_the_change_of_the_features_without_one_layer(case):
    expected = {i: cases.change(case, [i]) for i in case.removable}
    plan, rows = case.run("cka", len(case.layers) - 2)
    scores = by_layer(rows)
    assert {i: scores[i] for i in case.removable} == pytest.approx(expected, abs=1e-9)
    assert min(expected.values()) > 1e-6
    assert case.removed_by(plan) == lowest(expected, case.removable, 2)


@pytest.mark.parametrize(("name", "harm"), [("cka_greedy", cases.change), ("loss_greedy", cases.loss)])
def test_greedy_methods_repeatedly_remove_the_least_harmful_layer(case, name, harm):
    removed, candidates, expected = [], list(case.removable), {}
    for _ in range(3):
        expected |= {i: harm(case, [*removed, i]) for i in candidates}
        removed.append(min(candidates, key=expected.get))
        candidates.remove(removed[-1])
    plan, rows = case.run(name, len(case.layers) - 3)
    scores = by_layer(rows)
    assert {i: scores[i] for i in case.removable} == pytest.approx(expected, abs=1e-9)
    assert [row.layer for row in rows if not row.kept] == [row.layer for row in rows][:3] == removed
    assert [row.layer for row in rows if row.kept] == sorted(set(range(len(case.layers))) - set(removed))
    assert case.removed_by(plan) == set(removed)


def influence_of_each(case, removed):
    """Return 1 - mean cosine between input and output of each removable layer of a pruned copy."""
    small = case.without(removed)
    left = [i for i in range(len(case.layers)) if i not in removed]
    is_llama = len(case.layers) == 5
    blocks = list(small.model.layers) if is_llama else [*small.layer1, *small.layer2, *small.layer3]
    pairs = {i: [] for i in case.removable if i not in removed}
    for i, block in zip(left if is_llama else left[1:], blocks, strict=True):
        if i in pairs:
            block.register_forward_hook(
                lambda m, args, kwargs, out, i=i: pairs[i].append(
                    [t if is_llama else t.flatten(1) for t in (args[0], out)]
                ),
                with_kwargs=True,
            )
    for inputs, _ in case.batches:
        cases.run(small, inputs)
    return {
        i: 1 - torch.cat([F.cosine_similarity(*p, dim=-1).flatten() for p in seen]).mean().item()
        for i, seen in pairs.items()
    }


def test_rescored_block_influence_is_measured_in_the_network_pruned_so_far(case):
    removed, expected = [], {}
    for _ in range(3):
        scores = influence_of_each(case, removed)
        expected |= scores
        removed.append(min(scores, key=scores.get))
    plan, rows = case.run("block_influence_rescored", len(case.layers) - 3)
    scores = by_layer(rows)
    assert {i: scores[i] for i in case.removable} == pytest.approx(expected, abs=1e-9)
    assert [row.layer for row in rows if not row.kept] == [row.layer for row in rows][:3] == removed
    assert case.removed_by(plan) == set(removed)


def test_only_one_of_two_layers_that_can_replace_each_other_is_removed():
    layers = [Layer(f"layer{i}", True, "", 1, 1) for i in range(4)]
    harms = {(0,): 1, (1,): 1, (2,): 5, (3,): 9, (0, 1): 20, (0, 2): 6, (0, 3): 10}
    tested = []

    def harm(removed):
        tested.append(tuple(removed))
        return harms[tested[-1]]

    plan, rows = remove_one_by_one(layers, harm, 2, "greedy")
    assert tested == list(harms)
    assert plan.removed == ("layer0", "layer2")
    assert [(row.layer, row.score, row.kept) for row in rows] == [
        *((0, 1, False), (2, 6, False)),
        *((1, 20, True), (3, 10, True)),
    ]


def test_a_layer_that_is_never_tested_has_score_0(case):
    for name in GREEDY:
        plan, rows = case.run(name, len(case.layers))
        assert plan.removed == ()
        assert [(row.layer, row.score, row.kept) for row in rows] == [(i, 0, True) for i in range(len(rows))]


def matrices(case, i):
    return [p for path in case.layers[i].modules for p in case.network.get_submodule(path).parameters() if p.ndim > 1]


def test_magnitude_is_the_l1_norm_of_matrices(case):
    expected = {i: sum(np.abs(p.detach().numpy()).sum() for p in matrices(case, i)) for i in case.removable}
    plan, rows = case.run("magnitude", len(case.layers) - 2)
    scores = by_layer(rows)
    assert {i: scores[i] for i in case.removable} == pytest.approx(expected, rel=1e-12)
    assert case.removed_by(plan) == lowest(expected, case.removable, 2)


def test_taylor_is_the_sum_of_weights_times_gradients_of_the_mean_loss(case):
    network = copy.deepcopy(case.network).eval()
    losses = []
    for inputs, target in case.batches:
        output = network(**inputs).logits if isinstance(inputs, dict) else network(inputs)
        losses.append(F.cross_entropy(output.flatten(0, -2), target.flatten()))
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(sum(losses) / len(losses), parameters)
    saliences_of = {
        name: (p * g).abs().sum().item() for (name, p), g in zip(network.named_parameters(), gradients, strict=True)
    }
    large = {name for name, p in network.named_parameters() if p.ndim > 1}
    expected = {
        i: sum(
            value
            for name, value in saliences_of.items()
            if name in large and name.startswith(f"{case.layers[i].name}.")
        )
        for i in case.removable
    }
    plan, rows = case.run("taylor", len(case.layers) - 2)
    scores = by_layer(rows)
    assert {i: scores[i] for i in case.removable} == pytest.approx(expected, rel=1e-9)
    assert case.removed_by(plan) == lowest(expected, case.removable, 2)


def test_taylor_counts_frozen_weights_and_leaves_them_frozen(cnn):
    expected = saliences(cnn.network, cnn.layers, cnn.batches)
    cnn.network.layer1.requires_grad_(False)
    assert saliences(cnn.network, cnn.layers, cnn.batches) == expected
    assert not any(p.requires_grad for p in cnn.network.layer1.parameters())
    assert all(p.requires_grad for p in cnn.network.layer2.parameters())


def test_a_weight_that_no_sample_reaches_adds_nothing(case):
    before = saliences(case.network, case.layers, case.batches)
    module = case.network.get_submodule(case.layers[1].name)
    module.spare = nn.Linear(3, 3).double()
    assert saliences(case.network, case.layers, case.batches) == before


def states(case):
    """Return the inputs of all layers and the output of the last, one row per sample: the last token or everything."""
    network, states = case.network, []
    with torch.no_grad():
        for inputs, _ in case.batches:
            if isinstance(inputs, dict):
                hidden = []
                handles = [
                    block.register_forward_hook(
                        lambda m, args, kwargs, out, h=hidden: h.extend([args[0], out]), with_kwargs=True
                    )
                    for block in network.model.layers
                ]
                network(**inputs)
                for handle in handles:
                    handle.remove()
                states.append([x[:, -1].numpy() for x in (*hidden[::2], hidden[-1])])
            else:
                hidden = [inputs, F.relu(network.bn1(network.conv1(inputs)))]
                for block in (*network.layer1, *network.layer2, *network.layer3):
                    hidden.append(block(hidden[-1]))
                states.append([x.flatten(1).numpy() for x in hidden])
    return [
        np.concatenate(rows) if len({row.shape[1] for row in rows}) == 1 else None for rows in zip(*states, strict=True)
    ]


def distance(x, y):
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return float(np.mean(np.arccos(np.clip(cosines, -1, 1)) / np.pi))


def runs_of(removed):
    """Split a set of layers into runs [(first, last)]."""
    runs = []
    for i in sorted(removed):
        if runs and runs[-1][1] == i - 1:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    return runs


@pytest.mark.parametrize("num_removed", [1, 2, 3, 4, 5])
def test_angular_removes_the_closest_of_all_sets_of_the_fewest_runs(case, num_removed):
    before_and_after = states(case)
    if num_removed > 4 and len(case.layers) == 5:
        num_removed = 4  # one layer must be kept
    removals = {}
    for removed in combinations(case.removable, num_removed):
        runs = runs_of(removed)
        removals[removed] = len(runs), sum(distance(before_and_after[a], before_and_after[b + 1]) for a, b in runs)
    best = min(removals, key=removals.get)
    plan, rows = case.run("angular", len(case.layers) - num_removed)
    assert case.removed_by(plan) == set(best)
    # One row per layer that can be the first removed one: the best removal that begins with it.
    expected = {}
    for removed, (runs, value) in removals.items():
        if runs == removals[best][0]:
            expected[removed[0]] = min(expected.get(removed[0], np.inf), value)
    everything = set(range(len(case.layers)))
    assert {min(everything - set(row.kept)): -row.score for row in rows} == pytest.approx(expected, abs=1e-9)
    assert [row.best for row in rows].count(True) == 1
    assert max(rows, key=lambda row: row.score).best


def test_angular_in_a_language_model_removes_one_run():
    case = cases.llama(6)
    for keep in range(1, 6):
        plan, rows = case.run("angular", keep)
        assert len(runs_of(case.removed_by(plan))) == 1
        assert len(rows) == keep + 1


@pytest.mark.parametrize("seed", range(30))
def test_the_best_removals_are_the_best_of_all_sets(seed):
    """Random distances of random runs: nothing specific to angles is needed."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    joined = rng.random(count - 1) < 0.6  # whether a layer and the next one can be in one run
    removable = rng.random(count) < 0.8
    runs = {
        (a, b): float(rng.random())
        for a in range(count)
        for b in range(a, count)
        if removable[a : b + 1].all() and joined[a:b].all()
    }

    def cut(removed):
        """Return all ways to split a set into runs."""
        if not removed:
            return [[]]
        heads = [(removed[0], removed[k]) for k in range(len(removed)) if removed[k] == removed[0] + k]
        return [[head, *rest] for head in heads if head in runs for rest in cut(removed[head[1] - head[0] + 1 :])]

    for num_removed in range(1, int(removable.sum()) + 1):
        sets = combinations([i for i in range(count) if removable[i]], num_removed)
        removals = {
            removed: min((len(removal), sum(runs[run] for run in removal)) for removal in cut(removed))
            for removed in sets
        }
        fewest = min(removals.values())[0]
        first = {removed[0] for removed, removal in removals.items() if removal[0] == fewest}
        expected = {
            f: min(
                (*removal, removed) for removed, removal in removals.items() if removed[0] == f and removal[0] == fewest
            )
            for f in first
        }
        actual = {removal[2][0]: removal for removal in best_removals(runs, count, num_removed)}
        assert actual.keys() == expected.keys()
        for f, (number, value, removed) in expected.items():
            assert actual[f][0] == number
            assert actual[f][1] == pytest.approx(value)
            assert actual[f][2] == removed


def test_a_run_ends_where_the_shape_changes_between_layers():
    """With pooling between two layers, the first input can't be compared with the last output."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3)),
    )
    x = torch.randn(3, 4, 8, 8)
    layers = sglp.find_layers(model, x)
    assert [layer.removable for layer in layers] == [True] * 4
    assert set(distances(model, layers, [x])) == {(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3)}


def test_only_the_last_token_counts_for_the_angular_distance():
    case = cases.llama()
    inputs, target = case.batches[0]
    ids = inputs["input_ids"]
    alone = distances(case.network, case.layers, [({**inputs, "input_ids": ids}, target)])
    with torch.no_grad():
        hidden = case.network.model(**inputs, output_hidden_states=True).hidden_states
    expected = distance(hidden[1][:, -1].numpy(), hidden[3][:, -1].numpy())
    assert alone[1, 2] == pytest.approx(expected, abs=1e-9)
    assert alone[1, 2] != pytest.approx(distance(hidden[1][:, 0].numpy(), hidden[3][:, 0].numpy()), abs=1e-3)


def test_the_tokens_of_an_image_are_one_activation():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    model = nn.Sequential(copy.deepcopy(block), copy.deepcopy(block), nn.Flatten(), nn.Linear(24, 5)).eval()
    x = torch.randn(4, 3, 8)
    with eval_mode(model), torch.no_grad():
        expected = distance(*(state.flatten(1).double().numpy() for state in (x, model[0](x))))
    assert distances(model, sglp.find_layers(model, x), [x])[0, 0] == pytest.approx(expected, abs=1e-9)


def test_cka_adjacent_removes_the_layers_most_similar_to_the_previous_one(case):
    scores = [1.0, *(1 - case.similarity[a, b] for a, b in pairwise(range(len(case.layers))))]
    plan, rows = case.run("cka_adjacent", len(case.layers) - 3, batches=[])
    assert by_layer(rows) == pytest.approx(dict(enumerate(scores)))
    assert case.removed_by(plan) == lowest(scores, case.removable, 3)


@METHODS
def test_a_plan_keeps_the_required_number_and_removes_only_removable_layers(quick, name):
    fewest = len(quick.layers) - len(quick.removable) or 1
    if name == "sglp":
        fewest = max(fewest, len(quick.segments))
    for keep in {fewest, len(quick.layers) - 2, len(quick.layers)}:
        plan, rows = quick.run(name, keep)
        names = [layer.name for layer in quick.layers]
        assert len(plan.kept) == keep
        assert sorted((*plan.kept, *plan.removed), key=names.index) == names
        assert quick.removed_by(plan) <= set(quick.removable)
        assert sglp.best_plan(quick.layers, rows) == plan
        assert all(np.isfinite(row.score) for row in rows)


@ONE_BY_ONE
def test_a_removed_layer_has_no_higher_score_than_a_kept_one(cnn, name):
    plan, rows = cnn.run(name, 6)
    assert sorted(row.layer for row in rows) == list(range(10))
    removed, scores = cnn.removed_by(plan), by_layer(rows)
    kept_scores = [scores[i] for i in cnn.removable if i not in removed]
    last = [row.layer for row in rows if not row.kept][-1]
    # A greedy method tested the layers that it removed earlier in other networks.
    assert max(scores[i] for i in ([last] if name in GREEDY else removed)) <= min(kept_scores)


@METHODS
def test_an_impossible_number_is_refused_before_any_pass(cnn, name):
    for keep in (0, 2, 11):
        with count_passes() as passes, pytest.raises(BudgetError):
            cnn.run(name, keep)
        assert (passes.forward, passes.backward) == (0, 0)


@METHODS
def test_an_empty_list_of_batches_is_refused_where_one_is_needed(quick, name):
    if name in WITHOUT_DATA:
        assert quick.run(name, 4, batches=[]) == quick.run(name, 4)
        return
    with pytest.raises(ScoringError, match=r"^there is no batch to score layers with$"):
        quick.run(name, 4, batches=[])


@METHODS
def test_batches_are_read_once_and_the_result_is_reproducible(quick, name):
    keep = len(quick.layers) - 2
    expected = quick.run(name, keep)
    assert quick.run(name, keep, batches=iter(quick.batches)) == expected


@pytest.mark.parametrize("name", [n for n in method_names() if n not in HOLDING_OUT])
def test_the_order_of_batches_and_the_callers_random_state_do_not_matter(quick, name):
    keep = len(quick.layers) - 2
    options = {"criterion": FittedLoss} if name == "sglp" else {}  # the default criterion holds samples out
    plan, rows = quick.run(name, keep, **options)
    torch.manual_seed(99)
    np.random.seed(99)
    reversed_plan, reversed_rows = quick.run(name, keep, batches=quick.batches[::-1], **options)
    assert reversed_plan == plan
    assert [replace(row, score=0) for row in reversed_rows] == [replace(row, score=0) for row in rows]
    assert [row.score for row in reversed_rows] == pytest.approx([row.score for row in rows], rel=1e-5, abs=1e-6)


@METHODS
def test_the_network_and_all_random_states_are_unchanged(quick, name):
    network = quick.network
    child = network.get_submodule(quick.layers[2].name)
    child.train()
    child.requires_grad_(False)
    parameters = dict(network.named_parameters())
    first = next(iter(parameters.values()))
    first.grad = torch.full_like(first, 7)
    gradients = {key: p.grad for key, p in parameters.items()}
    required = {key: p.requires_grad for key, p in parameters.items()}
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    attributes = [sorted(vars(module)) for module in network.modules()]
    torch.manual_seed(11)
    np.random.seed(11)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()
    quick.run(name, len(quick.layers) - 2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [sorted(vars(module)) for module in network.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert {key: p.grad is gradients[key] for key, p in network.named_parameters()} == dict.fromkeys(parameters, True)
    assert (first.grad == 7).all()
    assert {key: p.requires_grad for key, p in network.named_parameters()} == required


@METHODS
def test_a_network_that_fails_is_unchanged(cnn, name):
    """The second batch is too wide for the network."""
    if name in WITHOUT_DATA:
        return
    images, target = cnn.batches[0]
    broken = [cnn.batches[0], (images.repeat(1, 2, 1, 1), target)]
    attributes = [sorted(vars(module)) for module in cnn.network.modules()]
    expected = cases.run(cnn.network, images)
    with pytest.raises((RuntimeError, DataError)):
        cnn.run(name, 6, batches=broken)
    assert [sorted(vars(module)) for module in cnn.network.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in cnn.network.modules())
    assert all(p.grad is None and p.requires_grad for p in cnn.network.parameters())
    assert torch.equal(cases.run(cnn.network, images), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [n for n in method_names() if n not in ("random", "tail", "cka_adjacent")])
def test_weights_that_are_not_finite_are_refused(cnn, name, value):
    with torch.no_grad():
        cnn.network.layer2[1].conv1.weight.fill_(value)
    with pytest.raises(sglp.SGLPError, match="finite"):
        cnn.run(name, 6)


def test_a_score_that_is_not_finite_is_named(cnn):
    with pytest.raises(ScoringError, match=r"^the guess of layer layer1\.1 is nan: it must be finite$"):
        keep_best(cnn.layers, [0, 0, float("nan"), *[0] * 7], 6, "guess")
