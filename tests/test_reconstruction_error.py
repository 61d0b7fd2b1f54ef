"""The method reconstruction_error: its plans against brute force over all plans."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from networks import Listed, noise

import sglp
from sglp.errors import BudgetError
from sglp.layer import Layer
from sglp.scoring.baselines import reconstruction_error as module
from sglp.scoring.baselines.reconstruction_error import reconstruction_error
from sglp.scoring.methods import find_criterion
from sglp.scoring.run_costs import best_kept, shortest_run


def layers_of(removable):
    return [Layer(f"layer{i}", one, "" if one else "changes the shape", 1, 1) for i, one in enumerate(removable)]


def segments_of(kept, layers):
    starts = [*sorted(kept), layers]
    return [(a, b - 1) for a, b in pairwise(starts)]


def random_errors(layers, seed, longest):
    errors = np.random.default_rng(seed).random((layers, layers))
    errors[~np.tri(layers, k=longest, dtype=bool) | np.tri(layers, k=-1, dtype=bool)] = np.inf
    np.fill_diagonal(errors, 0)
    return errors


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_the_best_of_all_plans(seed):
    layers, longest = 9, 3
    removable = (np.random.default_rng(seed).random(layers) < 0.8).tolist()
    errors = random_errors(layers, seed, longest)
    fixed = {0, *(i for i in range(layers) if not removable[i])}
    for keep in range(len(fixed), layers + 1):
        sums = {}
        for free in combinations(sorted(set(range(layers)) - fixed), keep - len(fixed)):
            kept = fixed | set(free)
            sums[frozenset(kept)] = sum(errors[segment] for segment in segments_of(kept, layers))
        best = min(sums, key=sums.__getitem__)
        if np.isfinite(sums[best]):
            assert best_kept(errors, removable, keep) == best


def plan_with(monkeypatch, errors, removable, keep, **options):
    """The plan for an error matrix of which entries beyond `longest` are hidden, and the `longest` that was used."""
    used = []

    def fake(network, layers, batches, *, longest):
        used.append(longest)
        hidden = ~np.tri(len(layers), k=longest, dtype=bool)
        return np.where(hidden, np.inf, errors)

    monkeypatch.setattr(module, "reconstruction_errors", fake)
    layers = layers_of(removable)
    plan, rows = reconstruction_error(None, layers, [], np.eye(len(layers)), [], keep, 0, **options)
    assert [row.layer for row in rows] == list(range(len(layers)))
    assert [layers[row.layer].name for row in rows if row.kept] == list(plan.kept)
    return [int(name.removeprefix("layer")) for name in plan.removed], used, [row.score for row in rows]


def test_a_known_best_plan(monkeypatch):
    errors = random_errors(8, 0, 7) + 10
    np.fill_diagonal(errors, 0)
    errors[1, 3] = errors[5, 6] = 0.1
    removed, _, scores = plan_with(monkeypatch, errors, [True] * 8, 5)
    assert removed == [2, 3, 6]
    assert scores == [0, *(errors[i - 1, i] for i in range(1, 8))]


def test_a_layer_that_can_not_be_removed_begins_a_segment(monkeypatch):
    errors = random_errors(8, 0, 7) + 10
    np.fill_diagonal(errors, 0)
    errors[1, 3] = errors[5, 6] = 0.1
    errors[3, 4] = 0.2
    removable = [False, True, False, True, True, True, True, True]
    removed, _, _ = plan_with(monkeypatch, errors, removable, 6)
    assert removed == [4, 6]


@pytest.mark.parametrize("seed", range(8))
def test_every_possible_number_of_layers_is_reached(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    removable = (generator.random(10) < 0.8).tolist()
    errors = random_errors(10, seed, 9)
    errors[generator.random((10, 10)) < 0.2] = np.inf  # of different shapes
    np.fill_diagonal(errors, 0)
    fewest = max(1, 10 - sum(removable))
    for keep in range(fewest, 11):
        monkeypatch.setattr(module, "LONGEST_RUN", 2)
        removed, _, scores = plan_with(monkeypatch, errors, removable, keep)
        assert len(removed) == 10 - keep
        assert all(removable[i] for i in removed)
        assert np.isfinite(scores).all()
        assert 0 not in removed or keep == 10 - sum(removable)
    for keep in (fewest - 1, 11):
        with pytest.raises(BudgetError, match=f"can't keep {keep} layers"):
            plan_with(monkeypatch, errors, removable, keep)


@pytest.mark.parametrize(
    ("removable", "keep", "longest"),
    [
        ([True] * 10, 5, 3),
        ([True] * 10, 3, 3),  # 0, 4, 8
        ([True] * 10, 2, 4),  # 0, 5
        ([True] * 10, 1, 9),
        ([False, True, True, True, True, True, False, True, True, True], 3, 3),  # 0, 4, 6
        ([False, True, True, True, True, True, False, True, True, True], 2, 5),
    ],
)
def test_runs_are_longer_only_where_the_number_of_layers_needs_it(removable, keep, longest):
    assert shortest_run(removable, keep, 3) == longest


def test_a_real_plan_has_the_smallest_sum_of_errors(network, layers, digits):
    images, targets = digits
    sglp.recalibrate(network, [images[:256]])
    batches = [(images[:64], targets[:64])]
    fit_on = list(images[64:192].split(16))
    errors = sglp.reconstruction_errors(network, layers, fit_on)
    plans = {
        keep: reconstruction_error(network, layers, [(0, 9)], np.eye(10), batches, keep, 0, errors=errors)[0]
        for keep in (5, 7)
    }
    free = [i for i, layer in enumerate(layers) if layer.removable]
    for keep, plan in plans.items():
        best = min(
            combinations(free, 10 - keep),
            key=lambda removed: sum(errors[s] for s in segments_of(set(range(10)) - set(removed), 10)),
        )
        assert plan.removed == tuple(layers[i].name for i in best)


def test_errors_are_measured_once_for_a_target(monkeypatch):
    torch.manual_seed(0)
    calls = []
    original = module.reconstruction_errors

    def counted(*args, **options):
        calls.append(options)
        return original(*args, **options)

    monkeypatch.setattr("sglp.compression.reconstruction_errors", counted)
    batches = [(noise(64, 5), torch.zeros(64, dtype=torch.int64))]
    options = {
        "method": "reconstruction_error",
        "calibration": (64, 32),
        "scoring": (64, 16),
        "reconstruction": (64, 8),
    }
    found = sglp.compress(Listed(), batches, target={"parameters": 0.5}, **options)
    assert len(found.plan.kept) == 2
    assert len(calls) == 1
    sglp.compress(Listed(), batches, prune_ratio=0.4, **options)
    assert len(calls) == 2


def brute_force(errors, removable, segments, keep):
    """The cheapest set of layers to keep whose runs of removed layers stay inside segments; None if there is none."""
    layers = len(removable)
    end = {i: last for first, last in segments for i in range(first, last + 1)}
    best = None
    for chosen in combinations(range(1, layers), keep - 1):
        heads = [0, *chosen]
        if any(not removable[i] and i not in heads for i in range(layers)):
            continue
        runs = list(zip(heads, [*(head - 1 for head in heads[1:]), layers - 1], strict=True))
        if any(j > end[i] for i, j in runs):
            continue
        cost = sum(errors[i, j] for i, j in runs)
        best = min(best or (np.inf, None), (cost, set(heads)))
    return best and best[1]


@pytest.mark.parametrize("seed", range(8))
def test_runs_stay_inside_segments(seed):
    draw = np.random.default_rng(seed)
    layers = 9
    errors = np.triu(draw.random((layers, layers)), 1).cumsum(axis=1)
    removable = [True] * layers
    removable[int(draw.integers(1, layers))] = False
    segments = [(0, 2), (3, 5), (6, 8)]
    for keep in range(1, layers):
        expected = brute_force(errors, removable, segments, keep)
        found = best_kept(errors, removable, keep, segments)
        if expected is not None and keep > layers - sum(removable):
            assert found == expected
        assert len(found) == keep


def test_the_criterion_finds_the_best_of_all_plans_by_its_own_score(network, layers, digits):
    batches = [(digits[0][:64], digits[1][:64])]
    score = find_criterion("reconstruction_error")(network, layers, batches)
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    assert score(range(len(layers)), ()) == 0
    for number in range(1, len(removable)):
        plans = combinations(removable, number)
        best = max(plans, key=lambda removed: score([i for i in range(len(layers)) if i not in removed], removed))
        kept, alone = score.solve([(0, len(layers) - 1)], len(layers) - number)
        assert kept == set(range(len(layers))) - set(best)
        assert alone[best[0]] >= 0
    for i in removable:
        assert score([], [i]) == -alone[i]


def test_the_default_of_compress_needs_no_labels(network, digits):
    sizes = {"calibration": (64, 32), "scoring": (16, 16), "recalibration": (64, 32)}
    with_labels = sglp.compress(network, [(digits[0][:64], digits[1][:64])], **sizes)
    without = sglp.compress(network, [(digits[0][:64], torch.zeros(64))], **sizes)
    assert without.plan == with_labels.plan
    state = with_labels.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in without.network.state_dict().items())
    assert {row.search for row in without.scores} == {"exact"}
