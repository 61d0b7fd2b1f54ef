"""The benchmarks at a small size: both versions give the same results; and their page."""

import pytest

from benchmarks import bench, finetuning, latency, pipeline, scoring, segmentation, start_up
from benchmarks.side_by_side import Row, Timing, in_turn

PARTS = [segmentation, scoring, latency, finetuning, pipeline, start_up]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.TITLE)
def test_both_versions_give_the_same(part):
    rows = part.measure(small=True)
    assert rows
    # `measure` compares the results of both ways itself; here the rows have to be complete.
    assert len({row.work for row in rows}) == len(rows)
    for row in rows:
        assert row.timing.ratio == pytest.approx(row.timing.other / row.timing.ours, rel=1e-6)


def test_the_ratio_is_the_others_time_divided_by_ours():
    calls = []
    timing = in_turn(lambda: calls.append("ours"), lambda: [calls.append("other"), sum(range(200_000))], rounds=3)
    assert calls == ["ours", "other"] * 4
    assert timing.low > 1
    assert timing.ours < timing.other


def test_the_page_marks_missed_goals():
    rows = [Row("a", "b", Timing(1.0, 3.0, 3.0, 2.5, 3.5), 2.0), Row("c", "d", Timing(2, 2, 1, 0.9, 1.1), 1.2, "why")]
    page = bench.page({"Part": rows, "Other": [Row("e", "f", Timing(1, 1, 1, 1, 1))]})
    assert "| a | b | 1 | 3 | 3.00 (2.50 to 3.50) | 2 reached |" in page
    assert "| c | d | 2 | 2 | 1.00 (0.90 to 1.10) | 1.2 **missed** |" in page
    assert "- c: why" in page
    assert "| e | f | 1 | 1 | 1.00 (1.00 to 1.00) |  |" in page
