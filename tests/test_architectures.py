"""Networks of many libraries lose half of their removable layers; docs/architectures.md has the outcomes."""

import pytest

from tools.architecture_trials import LARGE, SMALL, check
from tools.architectures import HEADER, PAGE


def _needs(case):
    if case.name.startswith("timm "):
        pytest.importorskip("timm", reason="timm is not installed")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name.replace(" ", "-"))
def test_half_of_the_removable_layers_are_removed(case):
    _needs(case)
    outcome = check(case)
    assert not outcome.sentence
    assert (outcome.layers, outcome.removable) == case.expected
    assert outcome.removed == outcome.removable // 2
    assert outcome.after < outcome.before


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore")  # of the libraries' factories
def test_half_of_the_removable_layers_of_larger_networks_are_removed(case):
    _needs(case)
    outcome = check(case)
    assert (outcome.layers, outcome.removable) == case.expected


def test_the_page_shows_no_failure_and_the_counts_that_are_known():
    text = PAGE.read_text()
    assert text.startswith(HEADER)
    summary, rows = {}, {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[1].isdigit():
            summary[cells[0]] = [int(cell) for cell in cells[1:]]
        elif len(cells) == 9 and cells[2].isdigit():
            rows[cells[0]] = (int(cells[2]), int(cells[3]))
    assert [counts[3] for counts in summary.values()] == [0, 0, 0], "`make architectures` renews the page"
    tried, works, refused, _ = summary["All classification models of torchvision"]
    assert (tried, works + refused) == (80, 80)
    assert works >= 60
    assert rows == {case.name: case.expected for case in (*SMALL, *LARGE)}
