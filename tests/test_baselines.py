"""The baselines, and the lookup of methods by name."""

import copy

import numpy as np
import pytest
import torch

import sglp
from sglp.errors import SGLPError
from sglp.layer import Layer
from sglp.scoring.baselines.block_influence import influences
from sglp.scoring.methods import find_method, method_names
from sglp.scoring.methods import sglp as sglp_method

FIXED = {0, 4, 7}
LAYERS = [Layer(f"layer{i}", i not in FIXED, "changes the shape" * (i in FIXED), 1, 1) for i in range(10)]
SEGMENTS = [(0, 3), (4, 6), (7, 9)]
BASELINES = pytest.mark.parametrize("name", ["random", "tail"])
POSSIBLE = pytest.mark.parametrize("keep", range(3, 11))


def plan_of(name, keep, seed=0, layers=LAYERS):
    return find_method(name)(None, layers, SEGMENTS, np.eye(len(layers)), [], keep, seed)


@BASELINES
@POSSIBLE
def test_a_plan_keeps_the_required_number_and_all_unremovable_layers(name, keep):
    plan, _ = plan_of(name, keep)
    assert len(plan.kept) == keep
    assert {f"layer{i}" for i in FIXED} <= set(plan.kept)
    assert sorted((*plan.kept, *plan.removed)) == [layer.name for layer in LAYERS]
    assert list(plan.kept) == sorted(plan.kept)


@BASELINES
@POSSIBLE
def test_the_score_rows_match_the_plan(name, keep):
    plan, rows = plan_of(name, keep)
    assert [row.layer for row in rows] == list(range(10))
    assert [LAYERS[row.layer].name for row in rows if row.kept] == list(plan.kept)
    removed_scores = [row.score for row in rows if not row.kept]
    kept_scores = [row.score for row in rows if row.kept and LAYERS[row.layer].removable]
    assert max(removed_scores, default=-np.inf) <= min(kept_scores, default=np.inf)


@BASELINES
@pytest.mark.parametrize("keep", [2, 11])
def test_impossible_numbers_of_layers_are_refused(name, keep):
    with pytest.raises(SGLPError):
        plan_of(name, keep)


@pytest.mark.parametrize(("keep", "removed"), [(9, (9,)), (7, (6, 8, 9)), (5, (3, 5, 6, 8, 9)), (10, ())])
def test_tail_removes_the_last_removable_layers(keep, removed):
    plan, _ = plan_of("tail", keep)
    assert plan.removed == tuple(f"layer{i}" for i in removed)


def test_random_is_the_same_for_the_same_seed_and_differs_by_seed():
    plans = [plan_of("random", 6, seed)[0] for seed in range(20)]
    assert plans == [plan_of("random", 6, seed)[0] for seed in range(20)]
    assert len({plan.removed for plan in plans}) > 10


def test_random_removes_every_removable_layer_equally_often():
    plans = [plan_of("random", 6, seed)[0] for seed in range(700)]
    counts = [sum(f"layer{i}" in plan.removed for plan in plans) for i in range(10) if i not in FIXED]
    assert sum(counts) == 2800
    assert all(abs(count - 400) < 4 * (700 * 4 / 7 * 3 / 7) ** 0.5 for count in counts)


def test_random_leaves_the_global_state_of_numpy_alone():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    plan_of("random", 6)
    assert np.random.random() == expected


def test_methods_are_found_by_name():
    assert {"sglp", "random", "tail", "block_influence"} <= set(method_names())
    assert method_names()[0] == "sglp"
    assert find_method("sglp") is sglp_method
    for name in method_names():
        assert find_method(name).__name__ == name


def test_a_users_own_method_is_found_by_its_dotted_name():
    assert find_method("sglp.scoring.baselines.tail:tail") is find_method("tail")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tails", f"method=tails is unknown: it must be {', '.join(method_names())} or package.module:function"),
        ("ranking", "method=ranking is unknown: .*sglp"),
        ("__init__", "method=__init__ is unknown"),
        ("sglp.scoring.baselines.tail:head", "the module sglp.scoring.baselines.tail has no head"),
        ("no_such_package:method", "the module no_such_package can't be imported"),
    ],
)
def test_unknown_methods_are_refused(name, message):
    with pytest.raises(SGLPError, match=message):
        find_method(name)


def test_sglp_splits_its_budget_or_uses_the_given_one(network, layers, digits):
    batches = [(digits[0][:16], digits[1][:16])]
    arguments = (network, layers, SEGMENTS, np.eye(10), batches)
    plan, rows = sglp_method(*arguments, 7, 0, search="sequential")
    assert len(plan.kept) == 7
    kept = [next(row.kept for row in rows if row.segment == s and row.best) for s in range(3)]
    assert sglp.best_plan(layers, rows) == plan
    assert plan.kept == tuple(layers[i].name for kept_in in kept for i in kept_in)
    budget = [4, 1, 1]
    plan, rows = sglp_method(*arguments, 7, 0, budget=budget, search="independent")
    assert [len(next(row.kept for row in rows if row.segment == s and row.best)) for s in range(3)] == budget
    with pytest.raises(SGLPError, match="segment 0-3 can keep 1 to 4 layers"):
        sglp_method(*arguments, 7, 0, budget=[5, 1, 1], search="independent")
    with pytest.raises(SGLPError, match=r"^score.budget=\[4, 1, 1\] says what each segment keeps, but with .*joint"):
        sglp_method(*arguments, 7, 0, budget=budget)


def test_block_influence_is_one_minus_the_mean_cosine_of_a_sample(network, layers, digits):
    images, targets = digits
    batches = [(images[:20], targets[:20]), (images[20:32], targets[20:32])]
    plan, rows = find_method("block_influence")(network, layers, SEGMENTS, np.eye(10), batches, 6, 0)
    stages = [network.layer1, network.layer2, network.layer3]
    blocks = [block for stage in stages for block in stage]
    expected = [0.0]
    with torch.no_grad():
        x = torch.relu(network.bn1(network.conv1(images[:32])))
        for block in blocks:
            y = block(x)
            if x.shape == y.shape:
                a, b = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
                cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                expected.append(1 - cosines.mean())
            else:
                expected.append(0.0)
            x = y
    assert [row.score for row in rows] == pytest.approx(expected, abs=1e-6)
    free = [i for i, layer in enumerate(layers) if layer.removable]
    removed = sorted(free, key=lambda i: expected[i])[:4]
    assert set(plan.removed) == {layers[i].name for i in removed}


def test_block_influence_of_tokens_is_a_mean_over_tokens():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    network = torch.nn.Sequential(*(copy.deepcopy(layer) for _ in range(3))).eval()
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    layers = [sglp.Layer(str(i), True, "", 1, 1) for i in range(3)]
    values = influences(network, layers, [x[:1], x[1:]])
    expected = []
    with torch.no_grad():
        for module in network:
            y = module(x)
            a, b = x.double(), y.double()
            expected.append(1 - float(((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean()))
            x = y
    assert values == pytest.approx(expected, abs=1e-6)
