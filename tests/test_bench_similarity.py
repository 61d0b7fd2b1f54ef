"""The benchmark of similarities at a small size: all versions agree, and differences are detected."""

import pytest
import torch

import sglp
from benchmarks import similarity


def test_all_versions_give_the_same_and_are_timed(monkeypatch):
    monkeypatch.setattr(similarity, "_peak", lambda version, small: len(version))  # a process takes seconds to start
    rows = similarity.measure(small=True)
    assert [(row.other, row.goal) for row in rows] == [
        ("the bare forward pass", similarity.FORWARD_GOAL),
        ("the bare forward pass", similarity.FORWARD_GOAL),
        ("the definition in float64", None),
        ("ckatorch", 5),
        ("torch-cka", 20),
    ]
    assert all(row.timing.ratio > 0 for row in rows)
    assert "peak memory 4 MiB, 8 MiB for ckatorch" in rows[3].note


def test_peak_memory_is_measured_in_a_separate_process():
    tensor = torch.ones(2**28)  # 1 GiB
    assert 100 < similarity._peak("ours", small=True) < tensor.nbytes // 2**20


@pytest.mark.parametrize("wrong", [lambda matrix: matrix * (1 + 1e-8), lambda matrix: matrix * torch.nan])
def test_different_similarities_are_detected(wrong, monkeypatch):
    right = sglp.cka_matrix
    monkeypatch.setattr(sglp, "cka_matrix", lambda *args: wrong(right(*args)))
    with pytest.raises(AssertionError, match="from those of the definition, on a ResNet"):
        similarity.measure(small=True)
