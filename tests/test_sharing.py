"""Sharing what goes against the plain greedy search and the optimum, and what it asks on the way."""

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


def greedy(free, goes, score):
    """Every layer that is left is asked about in every step."""
    gone = []
    while len(gone) < goes:
        gone.append(max((i for i in free if i not in gone), key=lambda i: (score(0, [*gone, i]), -i)))
    return gone


def any_score(seed):
    """A score without any structure."""
    return lambda segment, gone: float(np.random.default_rng([seed, *sorted(gone)]).random())


def watched(score):
    calls = []

    def asked(segment, gone):
        calls.append((segment, tuple(gone)))
        return score(segment, gone)

    return asked, calls


@pytest.mark.parametrize("seed", range(5))
def test_one_segment_makes_it_the_greedy_search(seed):
    score, calls = watched(any_score(seed))
    gone, falls = search_jointly([(0, 11)], REMOVABLE, 6, score, 1000)
    assert gone == greedy([i for i in range(12) if REMOVABLE[i]], 6, any_score(seed))
    assert len(calls) == 1 + sum(10 - step for step in range(6))
    assert sorted(falls) == [i for i in range(12) if REMOVABLE[i]]


@pytest.mark.parametrize("segments", [[(0, 11)], SEGMENTS, [(i, i + 1) for i in range(0, 12, 2)]], ids=len)
def test_where_what_went_makes_the_rest_dearer_no_segmentation_misses_what_greedy_finds(segments):
    """The guarantee of Minoux's algorithm: falls that only grow are bounds, however old."""
    weights = np.random.default_rng(3).random(12)

    def score(segment, gone):
        return -float(weights[gone].sum() ** 2)

    spare = {i: last - first for first, last in segments for i in range(first, last + 1)}
    free = [i for i in range(12) if REMOVABLE[i] and spare[i]]
    gone, _ = search_jointly(segments, [i in free for i in range(12)], 4, score, 1000)
    assert gone == greedy(free, 4, score)


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_what_goes_was_asked_about_last_and_every_segment_keeps_a_layer(seed, goes):
    score, calls = watched(any_score(seed))
    gone, falls = search_jointly(SEGMENTS, REMOVABLE, goes, score, 1000)
    assert len(gone) == len(set(gone)) == goes
    assert all(REMOVABLE[i] for i in gone)
    for first, last in SEGMENTS:
        assert any(i not in gone for i in range(first, last + 1))
    for step, layer in enumerate(gone):
        before = gone[:step]
        number = next(n for n, (first, last) in enumerate(SEGMENTS) if first <= layer <= last)
        assert (number, (*before, layer)) in calls
        fall = any_score(seed)(0, before) - any_score(seed)(0, [*before, layer])
        assert falls[layer] == pytest.approx(fall, abs=1e-12)
        if step + 1 < goes:  # the others of its segment were asked anew
            first, last = SEGMENTS[number]
            others = [i for i in range(first, last + 1) if REMOVABLE[i] and i not in (*before, layer)]
            assert {(number, (*before, layer, i)) for i in others} <= set(calls)
    assert len(calls) == len(set(calls)) <= 1 + sum(10 - step for step in range(max(goes, 1)))


def test_more_segments_ask_less():
    weights = np.random.default_rng(1).random(40)
    counts = []
    for size in (40, 20, 10, 5, 2):
        score, calls = watched(lambda segment, gone: -float(weights[gone].sum()))
        search_jointly([(i, i + size - 1) for i in range(0, 40, size)], [True] * 40, 15, score, 10_000)
        counts.append(len(calls))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1 + sum(40 - step for step in range(15))
    assert counts[-1] < counts[0] / 5


@pytest.mark.parametrize("most", [11, 12, 20, 30])
def test_never_more_evaluations_than_allowed(most):
    score, calls = watched(any_score(7))
    gone, _ = search_jointly(SEGMENTS, REMOVABLE, 6, score, most)
    assert len(gone) == 6
    assert len(calls) <= most
    assert len(calls) == most or gone == search_jointly(SEGMENTS, REMOVABLE, 6, any_score(7), 1000)[0]


def test_too_few_evaluations_are_refused_before_any_is_made():
    message = r"^score.max_evaluations=10 is too small: 10 layers can go, and each is to be asked about"
    with pytest.raises(ScoringError, match=message):
        search_jointly(SEGMENTS, REMOVABLE, 2, None, 10)


def test_an_unknown_search_is_refused(case):
    with pytest.raises(ScoringError, match=r"^search='wide' is unknown: it must be joint, sequential, independent$"):
        sglp.score_combinations(case.network, case.layers, case.segments, [2, 2, 2], case.batches, search="wide")


def test_a_criterion_that_scores_one_segment_is_refused(case):
    """What the score of a segment falls by can't be held against another's: each has a level of its own."""
    of_segment = {"gradnorm", "gradnorm_leak", "gradnorm_sum"}
    message = r"^search=joint compares layers .* scores one segment: use search=independent or sequential$"
    for name in criterion_names():
        score = {"criterion": name, "search": "joint", "budget": None}
        asked = {"method": "sglp", "target": None, "score": score}
        for ask in (lambda name=name: together(case, case.segments, 6, name), lambda asked=asked: check_params(asked)):
            with pytest.raises(ScoringError, match=message) if name in of_segment else nullcontext():
                ask()
        check_params(asked | {"score": score | {"search": "sequential"}})
        check_params(asked | {"method": "tail"})


@pytest.fixture
def case(network, digits):
    return cases.cnn(network, digits)


def together(case, segments, keep, criterion="loss"):
    return sglp_method(
        *(case.network, case.layers, segments, None, case.batches, keep, 0), criterion=find_criterion(criterion)
    )


def test_with_one_segment_the_plan_is_that_of_loss_greedy(case):
    plan, rows = together(case, [(0, 9)], 6)
    expected, theirs = case.run("loss_greedy", 6)
    assert plan == expected
    assert [row.layer for row in rows] == [row.layer for row in theirs]
    gone = [row.layer for row in rows if not row.kept]
    for step, row in enumerate(rows[:4]):
        rise = cases.loss(case, gone[: step + 1]) - cases.loss(case, gone[:step])
        assert row.score == pytest.approx(rise, rel=1e-6)


def test_segments_share_what_goes_where_it_hurts_least(case):
    """Additive: the layers go that cost least, whichever segment they are from."""
    costs = np.random.default_rng(8).random(10)

    def criterion(network, layers, batches, loss, seed, random_inits):
        def score(kept, gone, before):
            inside = next(s for s in case.segments if s[0] <= min([*kept, *gone]) <= s[1])
            assert sorted([*kept, *gone]) == list(range(inside[0], inside[1] + 1))
            return -float(costs[[*gone, *before]].sum())

        return score

    rows = sglp.score_combinations(
        case.network, case.layers, case.segments, [2, 2, 2], case.batches, criterion=criterion
    )
    sets = [
        gone
        for gone in combinations(case.free, 4)
        if all(any(i not in gone for i in range(first, last + 1)) for first, last in case.segments)
    ]
    best = min(sets, key=lambda gone: costs[list(gone)].sum())
    assert {row.layer for row in rows if not row.kept} == set(best)
    assert sorted(row.layer for row in rows) == list(range(10))
    assert {row.search for row in rows} == {"joint"}
    assert all(case.segments[row.segment][0] <= row.layer <= case.segments[row.segment][1] for row in rows)


def test_a_budget_a_segment_is_refused_where_they_share_one(case):
    message = r"^score.budget=\[3, 2, 1\] says what each segment keeps, but with score.search=joint they share it"
    with pytest.raises(BudgetError, match=message):
        sglp_method(case.network, case.layers, case.segments, None, case.batches, 6, 0, budget=[3, 2, 1])
