"""The benchmark of deep networks: one small depth, and the page."""

import math
import resource

from benchmarks import deep


def test_a_depth_is_measured_step_by_step():
    result = deep.measure(20)
    assert result["layers"] == 10
    assert list(result["seconds"]) == ["find_layers", "CKA", "segmentation", "scoring", "prune", "save", "load"]
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert 4 <= result["passes"] <= deep.EVALUATIONS  # at least one pass per block
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert 0 < result["gigabytes"] <= peak
    assert result["quality"]["dense"] > 0.5  # of ten classes
    assert 0.1 < result["quality"]["half removed"] < result["quality"]["dense"] + 0.05
    assert all(len(correlations) == 2 for correlations in result["stable"].values())


def test_the_page_has_the_exponent_of_growth():
    def result(layers, seconds):
        stable = {"loss, other batches": [0.5, 0.25]}
        sizes = {"depth": 2 * layers + 2, "layers": layers, "passes": 10, "gigabytes": math.sqrt(layers)}
        return sizes | {"quality": {"dense": 0.9}, "seconds": {"CKA": 1.0, "scoring": seconds}, "stable": stable}

    page = deep._page([result(10, 7.0), result(20, 20.0), result(40, 80.0)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    cells = {name: values for name, *values in rows}
    assert cells["layers"] == ["10", "20", "40", ""]
    assert cells["CKA, seconds"][-1] == "0.00"
    assert cells["scoring, seconds"] == ["7.00", "20.00", "80.00", "2.00"]
    assert cells["peak memory, GiB"][-1] == "0.50"
    assert cells["loss, other batches"] == ["0.50 0.25"] * 3 + [""]
