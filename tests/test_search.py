"""The search compared with full enumeration, and its number of evaluations with the number of calls."""

from functools import cache
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglp import score_combinations
from sglp.errors import ScoringError
from sglp.scoring.beam import choose_widths, evaluations, search
from sglp.scoring.criteria.gradnorm import GradNorm

CANDIDATES = (2, 3, 5, 7, 8, 11, 12)


def random_scores(seed=0):
    values = {}

    def score(chosen):
        assert list(chosen) == sorted(set(chosen))
        return values.setdefault(chosen, float(np.random.default_rng([seed, *chosen]).random()))

    return score


def best(scores):
    return max(scores, key=scores.get)


def test_the_exhaustive_search_scores_every_combination_once():
    score = random_scores()
    expected = {chosen: score(chosen) for chosen in combinations(CANDIDATES, 3)}
    assert search(CANDIDATES, 3, score) == expected


@pytest.mark.parametrize("size", range(1, 7))
def test_a_beam_wide_enough_for_all_combinations_is_exhaustive(size):
    score = random_scores(size)
    widest = max(comb(len(CANDIDATES), n) for n in range(size, len(CANDIDATES) + 1))
    assert search(CANDIDATES, size, score, widest) == search(CANDIDATES, size, score)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_width_1_finds_the_best_sum(seed):
    weights = dict(zip(CANDIDATES, np.random.default_rng(seed).normal(size=7), strict=True))

    def score(chosen):
        return sum(weights[i] for i in chosen)

    assert best(search(CANDIDATES, 4, score, 1)) == best(search(CANDIDATES, 4, score))


def test_a_narrow_beam_can_miss_the_best():
    def pairs_win(chosen):
        return 1 if 2 in chosen else 5 * (chosen == (11, 12))

    assert best(search(CANDIDATES, 2, pairs_win)) == (11, 12)
    assert best(search(CANDIDATES, 2, pairs_win, 1)) != (11, 12)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.data())
def test_evaluations_bound_the_calls(count, data):
    size = data.draw(st.integers(0, count))
    width = data.draw(st.none() | st.integers(1, 20))
    calls = []

    def score(chosen):
        calls.append(chosen)
        return random_scores()(chosen)

    search(range(count), size, score, width)
    assert len(calls) <= evaluations(count, size, width)
    if width is None or width == 1 or width >= comb(count, count // 2):
        assert len(calls) == evaluations(count, size, width)


def test_small_segments_are_searched_exhaustively_and_large_ones_by_beam():
    assert choose_widths([(5, 2), (20, 10)], 1000, 10_000, 4) == [None, 4]
    assert choose_widths([(5, 2), (20, 10)], 200_000, 200_000, 4) == [None, None]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=4),
    st.integers(0, 100),
    st.integers(1, 2000),
    st.integers(1, 8),
)
def test_beams_have_the_largest_width_that_max_evaluations_allows(problems, max_combinations, max_evaluations, width):
    def total(beam):
        beams = [None if comb(*problem) <= max(max_combinations, 1) else beam for problem in problems]
        return beams, sum(evaluations(*problem, b) for problem, b in zip(problems, beams, strict=True))

    if total(1)[1] > max_evaluations:
        with pytest.raises(ScoringError, match=rf"needs {total(1)[1]} evaluations"):
            choose_widths(problems, max_combinations, max_evaluations, width)
        return
    widths = choose_widths(problems, max_combinations, max_evaluations, width)
    used = next((w for w in widths if w is not None), width)
    assert (widths, total(used)[1] <= max_evaluations) == (total(used)[0], True)
    assert used == width or total(used + 1)[1] > max_evaluations


def test_beams_lose_little_on_real_scores(network, layers, digits):
    """Measured, keeping 3, 4, 5 of 7: beams of 1, 2, 4 reach at least 0.932, 0.932, 1 of the best score.

    The median set reaches 0.76-0.77.
    """
    score = cache(GradNorm(network, layers, [(digits[0][:32], digits[1][:32])]))
    free = [i for i, layer in enumerate(layers) if layer.removable]
    for size in (3, 4, 5):
        scores = search(free, size, score)
        for width, ratio in {1: 0.9, 2: 0.93, 4: 0.97}.items():
            assert max(search(free, size, score, width).values()) >= ratio * max(scores.values())
        assert np.median(list(scores.values())) < 0.9 * max(scores.values())


def test_scores_say_which_search_found_them(network, layers, digits):
    segments, budget = [(0, 3), (4, 6), (7, 9)], [3, 2, 2]
    batches = [(digits[0][:16], digits[1][:16])]
    scored = score_combinations(
        network, layers, segments, budget, batches, criterion=GradNorm, search="independent", max_combinations=2
    )
    assert {(c.segment, c.search) for c in scored} == {(0, "beam 4"), (1, "exhaustive"), (2, "exhaustive")}
    criterion = GradNorm(network, layers, batches)
    for segment, (first, last) in enumerate(segments):
        own = [c for c in scored if c.segment == segment]
        always_kept = {i for i in range(first, last + 1) if not layers[i].removable}
        assert all(always_kept <= set(c.kept) and len(c.kept) == budget[segment] for c in own)
        assert [c.score for c in own if c.best] == [max(c.score for c in own)]
        assert all(c.score == criterion(c.kept) for c in own)
