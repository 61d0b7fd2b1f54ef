"""The benchmark of similarities, small: what it compares is the same, and what is not is found."""

import pytest
import torch

import sglp
from benchmarks import similarity


def test_all_ways_give_the_same_and_are_timed(monkeypatch):
    monkeypatch.setattr(similarity, "_peak", lambda way, small: len(way))  # a process takes seconds to start
    rows = similarity.measure(small=True)
    assert [(row.other, row.goal) for row in rows] == [
        ("the bare forward pass", similarity.NEAR),
        ("the bare forward pass", similarity.NEAR),
        ("the definition in float64", None),
        ("ckatorch", 5),
        ("torch-cka", 20),
    ]
    assert all(row.timing.ratio > 0 for row in rows)
    assert "peak memory 4 MiB, of ckatorch 8" in rows[3].note


def test_peak_memory_is_that_of_a_process_of_its_own():
    held = torch.ones(2**28)  # 1 GiB
    assert 100 < similarity._peak("ours", small=True) < held.nbytes // 2**20


@pytest.mark.parametrize("wrong", [lambda found: found * (1 + 1e-8), lambda found: found * torch.nan])
def test_other_similarities_are_found(wrong, monkeypatch):
    right = sglp.cka_matrix
    monkeypatch.setattr(sglp, "cka_matrix", lambda *given: wrong(right(*given)))
    with pytest.raises(AssertionError, match="from those of the definition, of a ResNet"):
        similarity.measure(small=True)
