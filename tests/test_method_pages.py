"""docs/methods.md matches the docstrings, and the costs stated there match the passes that run."""

import cases
import pytest
import torch

from sglp.errors import SGLPError
from sglp.running import count_passes
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.scoring.methods import criterion_names, find_criterion, method_names
from sglp.scoring.methods import sglp as sglp_method
from tools import method_pages

PAGES = {kind: {page.name: page for page in entries} for kind, entries in method_pages.pages().items()}


@pytest.fixture(params=["cnn", "llama"])
def case(request, network, digits):
    return cases.cnn(network, digits, torch.float32) if request.param == "cnn" else cases.llama()


OTHERWISE = ("sglp", "reconstruction_error", "tournament")  # counted by tests of their own


def cost(page, **letters):
    """Evaluate the formulas."""
    return tuple(eval(formula, {}, letters) for formula in (page.forward, page.backward))


def test_the_committed_pages_match_the_docstrings():
    committed = method_pages.PATH.read_text(encoding="utf-8")
    assert committed == method_pages.markdown(), "docs/methods.md is out of date: run `python -m tools.method_pages`"


def test_every_method_and_criterion_has_a_page_with_all_its_parts():
    assert list(PAGES["Methods"]) == method_names()
    assert list(PAGES["Criteria"]) == criterion_names()
    text = method_pages.markdown()
    for page in (*PAGES["Methods"].values(), *PAGES["Criteria"].values()):
        assert all(len(part) > 15 for part in (page.title, page.rule, page.source, page.cost, page.use)), page.name
        assert not {"Args:", "Raises:"} & set(f"{page.rule} {page.use}".split())
        assert all(part.endswith(".") for part in (page.title, page.rule, page.source, page.cost, page.use)), page.name
        assert text.count(f"**{page.title}**") == 1
        assert text.count(f"`{page.name}`](#") == 1 + (page.name in ("random", "reconstruction_error"))


def test_every_link_inside_the_pages_leads_to_a_heading():
    lines = method_pages.markdown().splitlines()
    headings = {line.lstrip("# ").replace(" ", "-") for line in lines if line.startswith("#")}
    links = [part.partition(")")[0] for line in lines for part in line.split("](#")[1:]]
    assert len(links) == len(set(links)) == len(method_names()) + len(criterion_names())
    assert set(links) <= headings


@pytest.mark.parametrize("missing", ["Source", "Cost", "Use"])
def test_a_docstring_without_a_part_is_refused(missing):
    parts = {"Source": "me.", "Cost": "forward `B`, backward `0`.", "Use": "never."}
    text = "Name: a rule.\n\nThe rule.\n\n"
    page = method_pages.page("mine", text + "".join(f"{key}: {part}\n" for key, part in parts.items()))
    assert (page.title, page.rule, page.use, page.forward) == ("Name: a rule.", "The rule.", "never.", "B")
    with pytest.raises(SGLPError, match=r"^the docstring of mine lacks a part: .* 'Use: '$"):
        method_pages.page("mine", text + "".join(f"{k}: {part}\n" for k, part in parts.items() if k != missing))
    with pytest.raises(SGLPError, match="lacks a part"):
        method_pages.page("mine", "Name: a rule.\n\n" + "".join(f"{k}: {part}\n" for k, part in parts.items()))
    with pytest.raises(SGLPError, match="lacks a part"):
        method_pages.page("mine", text + "Source: me.\nCost: little.\nUse: never.\n")


# `reconstruction_error` cuts so few batches into smaller ones; tests/test_error_matrix.py counts its passes.
@pytest.mark.parametrize(("count", "num_removed"), [(1, 3), (2, 1)])
@pytest.mark.parametrize(
    "name", [name for name in method_names() if name not in ("sglp", "reconstruction_error", "tournament")]
)
def test_a_method_costs_what_its_page_says(case, name, count, num_removed):
    with count_passes() as passes:
        case.run(name, len(case.layers) - num_removed, batches=case.batches[:count])
    letters = {"B": count, "L": len(case.removable), "r": num_removed, "D": 1}
    assert (passes.forward, passes.backward) == cost(PAGES["Methods"][name], **letters)


@pytest.mark.parametrize(("count", "num_removed"), [(1, 3), (2, 1)])
def test_sglp_costs_what_its_page_says(case, count, num_removed):
    keep, evaluated = len(case.layers) - num_removed, []

    class Counted(FittedLoss):
        def __call__(self, *sets):
            evaluated.append(sets)
            return super().__call__(*sets)

    arguments = (case.network, case.layers, case.segments, case.similarity, case.batches[:count], keep)
    with count_passes() as passes:
        sglp_method(*arguments, 0, criterion=Counted)
    assert (passes.forward, passes.backward) == cost(PAGES["Methods"]["sglp"], B=count, C=len(evaluated))
    # The whole network and one round over all layers; at most one more than `loss_greedy` evaluates.
    assert len(case.removable) < len(evaluated) <= sum(len(case.removable) - step for step in range(num_removed)) + 1


@pytest.mark.parametrize(("count", "inits"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("name", [name for name in criterion_names() if name not in OTHERWISE])
def test_a_criterion_costs_what_its_page_says(case, name, count, inits):
    if name == "synflow" and len(case.layers) == 5:
        return  # SynFlow can't read token ids
    arguments = (case.network, case.layers, case.segments, case.similarity, case.batches[:count], len(case.layers) - 2)
    with count_passes() as passes:
        _, rows = sglp_method(*arguments, 0, criterion=find_criterion(name), random_inits=inits, search="independent")
    letters = {"B": count, "L": len(case.removable), "r": 2, "C": len(rows), "D": inits}
    assert (passes.forward, passes.backward) == cost(PAGES["Criteria"][name], **letters)
