"""The joint search compared with plain greedy search and the optimum, and the layers that it tests."""

from contextlib import nullcontext
from itertools import combinations

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglp
from sglp.errors import BudgetError, ScoringError
from sglp.scoring.joint import search_jointly
from sglp.scoring.methods import criterion_names, find_criterion
from sglp.scoring.methods import sglp as sglp_method
from stages.support.checks import check_params

SEGMENTS = [(0, 2), (3, 6), (7, 7), (8, 11)]
REMOVABLE = [i not in (0, 5) for i in range(12)]


def greedy(free, num_removed, score):
    """Test every remaining layer in every step."""
    removed = []
    while len(removed) < num_removed:
        removed.append(max((i for i in free if i not in removed), key=lambda i: (score(0, [*removed, i]), -i)))
    return removed


def any_score(seed):
    """Return a score without any structure."""
    return lambda segment, removed: float(np.random.default_rng([seed, *sorted(removed)]).random())


def recorded_calls(score):
    """Return the score and the list of its calls."""
    calls = []

    def recorded(segment, removed):
        calls.append((segment, tuple(removed)))
        return score(segment, removed)

    return recorded, calls


@pytest.mark.parametrize("seed", range(5))
def test_with_one_segment_it_is_the_greedy_search(seed):
    score, calls = recorded_calls(any_score(seed))
    removed, drops = search_jointly([(0, 11)], REMOVABLE, 6, score, 1000)
    assert removed == greedy([i for i in range(12) if REMOVABLE[i]], 6, any_score(seed))
    assert len(calls) == 1 + sum(10 - step for step in range(6))
    assert sorted(drops) == [i for i in range(12) if REMOVABLE[i]]


@pytest.mark.parametrize("segments", [[(0, 11)], SEGMENTS, [(i, i + 1) for i in range(0, 12, 2)]], ids=len)
def test_every_segmentation_equals_greedy_search_if_removals_make_others_costlier(segments):
    """Minoux's guarantee: if drops can only grow, outdated ones are lower bounds."""
    weights = np.random.default_rng(3).random(12)

    def score(segment, removed):
        return -float(weights[removed].sum() ** 2)

    spare = {i: last - first for first, last in segments for i in range(first, last + 1)}
    free = [i for i in range(12) if REMOVABLE[i] and spare[i]]
    removed, _ = search_jointly(segments, [i in free for i in range(12)], 4, score, 1000)
    assert removed == greedy(free, 4, score)


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_a_removed_layer_was_tested_last_and_every_segment_keeps_a_layer(seed, num_removed):
    score, calls = recorded_calls(any_score(seed))
    removed, drops = search_jointly(SEGMENTS, REMOVABLE, num_removed, score, 1000)
    assert len(removed) == len(set(removed)) == num_removed
    assert all(REMOVABLE[i] for i in removed)
    for first, last in SEGMENTS:
        assert any(i not in removed for i in range(first, last + 1))
    for step, layer in enumerate(removed):
        earlier = removed[:step]
        number = next(n for n, (first, last) in enumerate(SEGMENTS) if first <= layer <= last)
        assert (number, (*earlier, layer)) in calls
        drop = any_score(seed)(0, earlier) - any_score(seed)(0, [*earlier, layer])
        assert drops[layer] == pytest.approx(drop, abs=1e-12)
        if step + 1 < num_removed:  # the other layers of its segment were tested again
            first, last = SEGMENTS[number]
            others = [i for i in range(first, last + 1) if REMOVABLE[i] and i not in (*earlier, layer)]
            assert {(number, (*earlier, layer, i)) for i in others} <= set(calls)
    assert len(calls) == len(set(calls)) <= 1 + sum(10 - step for step in range(max(num_removed, 1)))


def test_more_segments_need_fewer_evaluations():
    weights = np.random.default_rng(1).random(40)
    counts = []
    for size in (40, 20, 10, 5, 2):
        score, calls = recorded_calls(lambda segment, removed: -float(weights[removed].sum()))
        search_jointly([(i, i + size - 1) for i in range(0, 40, size)], [True] * 40, 15, score, 10_000)
        counts.append(len(calls))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1 + sum(40 - step for step in range(15))
    assert counts[-1] < counts[0] / 5


@pytest.mark.parametrize("limit", [11, 12, 20, 30])
def test_never_more_evaluations_than_allowed(limit):
    score, calls = recorded_calls(any_score(7))
    removed, _ = search_jointly(SEGMENTS, REMOVABLE, 6, score, limit)
    assert len(removed) == 6
    assert len(calls) <= limit
    assert len(calls) == limit or removed == search_jointly(SEGMENTS, REMOVABLE, 6, any_score(7), 1000)[0]


def test_too_small_a_limit_is_refused_before_any_evaluation():
    message = (
        r"^score.max_evaluations=10 is too small: it must be at least 11 to score the whole network and each of its 10 "
    )
    with pytest.raises(ScoringError, match=message):
        search_jointly(SEGMENTS, REMOVABLE, 2, None, 10)


def test_an_unknown_search_is_refused(case):
    with pytest.raises(ScoringError, match=r"^search='wide' is unknown: it must be joint, sequential, independent$"):
        sglp.score_combinations(case.network, case.layers, case.segments, [2, 2, 2], case.batches, search="wide")


def test_a_criterion_that_scores_one_segment_is_refused(case):
    """Drops in the scores of different segments can't be compared: each has its own level."""
    segment_criteria = {"gradnorm", "gradnorm_leak", "gradnorm_sum"}
    message = r"^search=joint compares layers .* scores one segment: use search=independent or sequential$"
    for name in criterion_names():
        score = {"criterion": name, "search": "joint", "budget": None}
        params = {"method": "sglp", "target": None, "score": score}
        for run in (lambda name=name: joint(case, case.segments, 6, name), lambda params=params: check_params(params)):
            with pytest.raises(ScoringError, match=message) if name in segment_criteria else nullcontext():
                run()
        check_params(params | {"score": score | {"search": "sequential"}})
        check_params(params | {"method": "tail"})


@pytest.fixture
def case(network, digits):
    return cases.cnn(network, digits)


def joint(case, segments, keep, criterion="loss"):
    return sglp_method(
        *(case.network, case.layers, segments, None, case.batches, keep, 0), criterion=find_criterion(criterion)
    )


def test_with_one_segment_the_plan_equals_loss_greedy(case):
    plan, rows = joint(case, [(0, 9)], 6)
    expected, expected_rows = case.run("loss_greedy", 6)
    assert plan == expected
    assert [row.layer for row in rows] == [row.layer for row in expected_rows]
    removed = [row.layer for row in rows if not row.kept]
    for step, row in enumerate(rows[:4]):
        rise = cases.loss(case, removed[: step + 1]) - cases.loss(case, removed[:step])
        assert row.score == pytest.approx(rise, rel=1e-6)


def test_layers_are_removed_where_they_cost_least(case):
    """With additive costs the cheapest layers are removed, whichever segment they are in."""
    costs = np.random.default_rng(8).random(10)

    def criterion(network, layers, batches, loss, seed, random_inits):
        def score(kept, removed, already_removed):
            inside = next(s for s in case.segments if s[0] <= min([*kept, *removed]) <= s[1])
            assert sorted([*kept, *removed]) == list(range(inside[0], inside[1] + 1))
            return -float(costs[[*removed, *already_removed]].sum())

        return score

    rows = sglp.score_combinations(
        case.network, case.layers, case.segments, [2, 2, 2], case.batches, criterion=criterion
    )
    sets = [
        removed
        for removed in combinations(case.removable, 4)
        if all(any(i not in removed for i in range(first, last + 1)) for first, last in case.segments)
    ]
    best = min(sets, key=lambda removed: costs[list(removed)].sum())
    assert {row.layer for row in rows if not row.kept} == set(best)
    assert sorted(row.layer for row in rows) == list(range(10))
    assert {row.search for row in rows} == {"joint"}
    assert all(case.segments[row.segment][0] <= row.layer <= case.segments[row.segment][1] for row in rows)


def test_a_budget_per_segment_is_refused_with_the_joint_search(case):
    message = (
        r"^score.budget=\[3, 2, 1\] says what each segment keeps, but with score.search=joint all segments share one"
    )
    with pytest.raises(BudgetError, match=message):
        sglp_method(case.network, case.layers, case.segments, None, case.batches, 6, 0, budget=[3, 2, 1])
