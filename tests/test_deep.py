"""The benchmark of deep networks: one of its depths, small, and its page."""

import math

from benchmarks import deep


def test_a_depth_is_measured_step_by_step():
    found = deep.measure(20)
    assert found["layers"] == 10
    assert list(found["seconds"]) == ["find_layers", "CKA", "segmentation", "scoring", "prune", "save", "load"]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert 4 <= found["passes"] <= deep.EVALUATIONS  # a block a pass at the least
    assert 0.1 < found["gigabytes"] < 8
    assert found["quality"]["dense"] > 0.5  # of ten classes
    for correlations in found["stable"].values():
        assert len(correlations) == 2
        assert all(-1 <= rho <= 1 for rho in correlations)


def test_the_page_has_the_exponent_of_growth():
    def one(layers, seconds):
        stable = {"loss, other batches": [0.5, 0.25]}
        sizes = {"depth": 2 * layers + 2, "layers": layers, "passes": 10, "gigabytes": math.sqrt(layers)}
        return sizes | {"quality": {"dense": 0.9}, "seconds": {"CKA": 1.0, "scoring": seconds}, "stable": stable}

    page = deep._page([one(10, 7.0), one(20, 20.0), one(40, 80.0)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    cells = {name: values for name, *values in rows}
    assert cells["layers"] == ["10", "20", "40", ""]
    assert cells["CKA, seconds"][-1] == "0.00"
    assert cells["scoring, seconds"] == ["7.00", "20.00", "80.00", "2.00"]
    assert cells["peak memory, GiB"][-1] == "0.50"
    assert cells["loss, other batches"] == ["0.50 0.25"] * 3 + [""]
