"""Budgets: properties of every split, and the largest possible ratio."""

import re
from decimal import ROUND_HALF_UP, Decimal
from itertools import accumulate, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglp import allocate_budget
from sglp.budget import check_budget, check_target, layers_to_keep, max_removable, savings, split_budget
from sglp.errors import BudgetError


def cover(sizes):
    ends = list(accumulate(sizes))
    return [(end - size, end - 1) for size, end in zip(sizes, ends, strict=True)]


def removable_in(segments, removable):
    return [sum(removable[first : last + 1]) for first, last in segments]


@st.composite
def networks(draw, longest=12, most=6):
    """Draw at most `most` segments of at most `longest` layers, and which of their layers are removable."""
    segments = cover(draw(st.lists(st.integers(1, longest), min_size=1, max_size=most)))
    layers = segments[-1][1] + 1
    removable = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
    assume(any(removable))
    return segments, removable


RATIOS = st.integers(0, 999).map(lambda thousandths: thousandths / 1000)


@settings(deadline=None, max_examples=300)
@given(networks(), RATIOS)
def test_a_budget_meets_the_ratio_or_names_the_largest_possible(network, ratio):
    segments, removable = network
    free = removable_in(segments, removable)
    requested = int((Decimal(str(ratio)) * sum(free)).quantize(Decimal(1), ROUND_HALF_UP))
    sizes = [last - first + 1 for first, last in segments]
    possible = sum(min(count, size - 1) for count, size in zip(free, sizes, strict=True))
    if requested <= possible:
        kept = allocate_budget(segments, removable, ratio)
        assert sum(sizes) - sum(kept) == requested
        for keeps, size, count in zip(kept, sizes, free, strict=True):
            assert max(1, size - count) <= keeps <= size
        assert check_budget(segments, removable, kept) == kept
        return
    with pytest.raises(BudgetError, match="largest possible prune_ratio is") as caught:
        allocate_budget(segments, removable, ratio)
    largest = float(re.search(r"prune_ratio is ([\d.]+)$", str(caught.value))[1])
    assert sum(sizes) - sum(allocate_budget(segments, removable, largest)) <= possible
    if largest + 0.002 < 1:
        with pytest.raises(BudgetError, match="largest possible"):
            allocate_budget(segments, removable, largest + 0.002)


@settings(deadline=None, max_examples=200)
@given(networks(), RATIOS)
def test_each_segment_loses_its_proportional_share_to_within_one_layer(network, ratio):
    segments, removable = network
    free = removable_in(segments, removable)
    num_removed = len(removable) - layers_to_keep(removable, ratio)
    shares = [num_removed * count / sum(free) for count in free]
    sizes = [last - first + 1 for first, last in segments]
    assume(all(share <= size - 2 or not count for share, size, count in zip(shares, sizes, free, strict=True)))
    kept = allocate_budget(segments, removable, ratio)
    assert all(abs(size - k - share) < 1 for size, k, share in zip(sizes, kept, shares, strict=True))


@pytest.mark.parametrize(
    ("sizes", "num_removed", "removed"),
    [
        ([5, 3, 2], 5, [3, 1, 1]),  # shares 2.5, 1.5, 1: equal remainders, so the earlier segment
        ([8, 2], 3, [2, 1]),  # shares 2.4, 0.6
        ([9, 9, 2], 5, [2, 2, 1]),  # shares 2.25, 2.25, 0.5
        ([16, 3, 1], 6, [5, 1, 0]),  # shares 4.8, 0.9, 0.3
        ([1, 4, 5], 5, [0, 2, 3]),  # the single layer of segment 0 is kept; shares of the others 2.22, 2.78
        ([2, 2, 16], 17, [1, 1, 15]),
        ([4, 4], 0, [0, 0]),
    ],
)
def test_the_largest_remainder_gets_the_odd_layer(sizes, num_removed, removed):
    segments, layers = cover(sizes), sum(sizes)
    kept = split_budget(segments, [True] * layers, layers - num_removed)
    assert [size - k for size, k in zip(sizes, kept, strict=True)] == removed


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(4, 9), min_size=2, max_size=4), st.data())
def test_no_split_is_closer_to_the_shares(sizes, data):
    num_removed = data.draw(st.integers(0, sum(sizes) // 2))
    shares = [num_removed * size / sum(sizes) for size in sizes]
    kept = split_budget(cover(sizes), [True] * sum(sizes), sum(sizes) - num_removed)

    def distance(removed):
        return sum((count - share) ** 2 for count, share in zip(removed, shares, strict=True))

    splits = [split for split in product(*(range(size) for size in sizes)) if sum(split) == num_removed]
    actual = distance([size - k for size, k in zip(sizes, kept, strict=True)])
    assert actual == pytest.approx(min(map(distance, splits)), abs=1e-9)


@pytest.mark.parametrize(("ratio", "num_removed"), [(0.5, 13), (0.02, 1), (0.0199, 0), (0.58, 15), (0, 0)])
def test_halves_are_rounded_up(ratio, num_removed):
    """0.58 x 25 is 14.499... in binary floating point, but 14.5 as the user wrote it."""
    assert layers_to_keep([True] * 25, ratio) == 25 - num_removed


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan")])
def test_ratios_outside_0_to_1_are_refused(ratio):
    with pytest.raises(BudgetError, match=rf"prune_ratio={ratio} is impossible: it must be at least 0 and below 1"):
        allocate_budget([(0, 3)], [True] * 4, ratio)


def test_a_network_without_removable_layers_has_no_budget():
    with pytest.raises(BudgetError, match="no layer of this network can be removed"):
        allocate_budget([(0, 3)], [False] * 4, 0.5)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ([2], r"one number per segment, but \[2\] has 1 for 2"),
        ([2, 2, 1], "has 3 for 2"),
        ([0, 2], "segment 0-3 can keep 1 to 4 layers, but its budget is 0"),
        ([5, 2], "segment 0-3 can keep 1 to 4 layers, but its budget is 5"),
        ([4, 1], "segment 4-6 can keep 2 to 3 layers, but its budget is 1"),
    ],
)
def test_a_users_impossible_budget_is_refused(budget, message):
    removable = [True] * 4 + [False, False, True]
    with pytest.raises(BudgetError, match=message):
        check_budget([(0, 3), (4, 6)], removable, budget)


def test_a_users_possible_budget_is_unchanged():
    assert check_budget([(0, 3), (4, 6)], [True] * 4 + [False, False, True], (1, 3)) == [1, 3]


@settings(deadline=None, max_examples=100)
@given(networks(longest=3, most=3), st.data())
def test_savings_are_those_of_the_cheapest_and_the_dearest_layers_that_can_be_removed_together(network, data):
    segments, removable = network
    costs = data.draw(st.lists(st.integers(0, 50), min_size=len(removable), max_size=len(removable)))
    possible = {}
    for removed in product(*((False, True) if can else (False,) for can in removable)):
        if all(not all(removed[first : last + 1]) for first, last in segments):
            possible.setdefault(sum(removed), []).append(sum(c for c, out in zip(costs, removed, strict=True) if out))
    least, most = savings(segments, removable, costs)
    assert sum(max_removable(segments, removable)) + 1 == len(possible) == len(least)
    assert least == [min(possible[count]) for count in range(len(possible))]
    assert most == [max(possible[count]) for count in range(len(possible))]


def test_a_target_is_one_share():
    assert check_target({"macs": 0.5}) == ("macs", 0.5)


@pytest.mark.parametrize(
    ("target", "budget", "message"),
    [
        (
            {},
            None,
            r"target=\{\} is wrong: it must be one of macs, parameters, latency with a share, such as \{'macs': 0.5\}",
        ),
        ({"flops": 0.5}, None, "is wrong: it must be one of"),
        ({"macs": 0.5, "latency": 0.5}, None, "is wrong: it must be one of"),
        (0.5, None, "target=0.5 is wrong: it must be one of"),
        ({"macs": 1}, None, "target: macs=1 is wrong: the remaining share must be above 0 and below 1"),
        ({"macs": 0.0}, None, "target: macs=0.0 is wrong"),
        ({"macs": "half"}, None, "target: macs=half is wrong"),
        ({"macs": True}, None, "target: macs=True is wrong"),
        ({"macs": 0.5}, (2, 1), r"score.budget=\[2, 1\] and a target can't both set the number of kept layers"),
    ],
)
def test_other_targets_are_refused(target, budget, message):
    with pytest.raises(BudgetError, match=message):
        check_target(target, budget)
