"""Targets: remaining costs equal those after surgery, and the largest number of layers that meets a target is found."""

import functools
import json
import math
import re
import shutil
from types import SimpleNamespace

import cases
import pipeline
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import record
from torch import nn

import sglp
from experiments.settings import distinct
from experiments.settings import settings as compared
from sglp.cost import count_macs, count_parameters
from sglp.errors import BudgetError
from sglp.layer import Layer
from sglp.target import RemainingCost, search_keep_count


def plan_of(layers, removed):
    names = [layer.name for layer in layers]
    return sglp.Plan([n for i, n in enumerate(names) if i not in removed], [names[i] for i in sorted(removed)])


def counted(kind, network, inputs):
    return count_macs(network, inputs) if kind == "macs" else count_parameters(network)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


class Tied(nn.Module):
    """Four blocks: two share a matrix, one shares a matrix with the head, and one is registered under a second name."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), *(Block() for _ in range(4)), nn.Linear(6, 6))
        self.body[2].inner.weight = self.body[1].inner.weight
        self.body[4].inner.weight = self.body[5].weight
        self.again = self.body[3]

    def forward(self, x):
        return self.body(x)


@pytest.fixture(params=["cnn", "llama", "tied"])
def case(request, network, digits):
    """A network, its layers and an input."""
    if request.param == "tied":
        tied, inputs = Tied(), torch.ones(2, 3)
        return tied, sglp.find_layers(tied, inputs), inputs
    prepared = cases.cnn(network, digits) if request.param == "cnn" else cases.llama()
    return prepared.network, prepared.layers, prepared.batches[0][0]


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_the_remaining_cost_of_a_plan_equals_that_of_the_pruned_network(case, kind):
    network, layers, inputs = case
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost, free = RemainingCost(kind, network, layers, inputs), [i for i, layer in enumerate(layers) if layer.removable]
    for size in range(len(free) + 1):
        plan = plan_of(layers, free[size // 2 :][:size])
        assert cost.share(plan) == counted(kind, sglp.prune(network, plan), inputs) / counted(kind, network, inputs)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())


class FakeCost:
    """The cost of an imaginary network."""

    kind = "macs"

    def __init__(self, costs, removable, outside):
        self.layers = [Layer(f"l{i}", can, "", 0, c) for i, (c, can) in enumerate(zip(costs, removable, strict=True))]
        self.layer_costs, self.dense = costs, outside + sum(costs)
        self.by_name = {layer.name: layer.macs for layer in self.layers}

    def share(self, plan):
        return (self.dense - sum(self.by_name[name] for name in plan.removed)) / self.dense


@st.composite
def networks(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    segments = [(end - size, end - 1) for size, end in zip(sizes, ends, strict=True)]
    costs = draw(st.lists(st.integers(0, 30), min_size=ends[-1], max_size=ends[-1]))
    removable = draw(st.lists(st.booleans(), min_size=ends[-1], max_size=ends[-1]))
    removable[draw(st.integers(0, ends[-1] - 1))] = True
    return FakeCost(costs, removable, draw(st.integers(1, 40))), segments, draw(st.randoms(use_true_random=False))


def removable_after(layers, segments, removed):
    """Return the layers that can still be removed: every segment keeps one."""
    spare = [(a, b) for a, b in segments if sum(a <= i <= b for i in removed) < b - a]
    return [i for a, b in spare for i in range(a, b + 1) if layers[i].removable and i not in removed]


def orders(layers, segments, random, nested):
    """Draw a method's plans by number of kept layers: nested, all from one order of removal, or independent."""
    plans = {len(layers): plan_of(layers, set())}
    removed = []
    while removable_after(layers, segments, removed):
        size = len(removed) + 1
        removed = removed if nested else []
        while len(removed) < size:
            removed = [*removed, random.choice(removable_after(layers, segments, removed))]
        plans[len(layers) - size] = plan_of(layers, set(removed))
    return plans


SHARES = st.integers(1, 99).map(lambda hundredths: hundredths / 100)


@settings(deadline=None, max_examples=150)
@given(networks(), SHARES, st.booleans())
def test_the_most_layers_that_meet_a_target_are_kept(drawn, share, nested):
    cost, segments, random = drawn
    plans, requested = orders(cost.layers, segments, random, nested), []
    possible = [keep for keep, plan in plans.items() if cost.share(plan) <= share]

    def plan_for(keep):
        requested.append(keep)
        return plans[keep], [keep]

    if not possible:
        with pytest.raises(
            BudgetError, match=rf"^target: macs={share:g} is out of reach: .* of the dense network's macs"
        ):
            search_keep_count(share, cost, plan_for, segments)
        return
    result = search_keep_count(share, cost, plan_for, segments)
    assert cost.share(result.plan) == result.share <= share
    assert plans[result.rows[0]] == result.plan
    assert len(requested) == len(set(requested))
    if nested:  # otherwise more layers can cost less, and only an exhaustive search is sure to find the most
        assert len(result.plan.kept) == max(possible)
        assert len(requested) <= 1 + math.ceil(math.log2(len(plans)))


@settings(deadline=None, max_examples=60)
@given(networks(), SHARES)
def test_the_reported_reachable_share_can_be_reached(drawn, share):
    cost, segments, _ = drawn

    def cheapest(keep):
        """Return the plan of the method that saves most."""
        removed = []
        while len(removed) < len(cost.layers) - keep:
            removed.append(max(removable_after(cost.layers, segments, removed), key=lambda i: cost.layer_costs[i]))
        return plan_of(cost.layers, set(removed)), []

    try:
        search_keep_count(share, cost, cheapest, segments)
    except BudgetError as error:
        least = float(re.search(r"leave at least ([\d.]+) of", str(error))[1])
        assert least > share
        if least < 1:
            assert search_keep_count(least, cost, cheapest, segments).share <= least
            with pytest.raises(BudgetError, match="out of reach"):
                search_keep_count(least - 0.002, cost, cheapest, segments)


def test_equal_layers_need_a_single_plan():
    cost, requested = FakeCost([10] * 40, [True] * 40, 100), []

    def plan_for(keep):
        requested.append(keep)
        return plan_of(cost.layers, set(range(40 - keep))), []

    assert search_keep_count(0.5, cost, plan_for, [(0, 39)]).share == 0.5
    assert requested == [15]  # (100 + 150) / 500


@pytest.mark.parametrize(("kind", "saved"), [("latency", 1), ("macs", 0.5)])
def test_few_plans_are_needed_where_layer_costs_are_misleading(kind, saved):
    """Latency, or layers that share half of their parameters: 64 layers need at most two bisections."""
    cost, requested = FakeCost([10] * 64, [True] * 64, 100), []
    cost.kind, share = kind, cost.share
    cost.share = lambda plan: 1 - saved * (1 - share(plan))

    def plan_for(keep):
        requested.append(keep)
        return plan_of(cost.layers, set(range(64 - keep))), []

    result = search_keep_count(0.6, cost, plan_for, [(0, 63)])
    assert len(result.plan.removed) == math.ceil(0.4 * 740 / saved / 10)
    assert len(requested) <= 8


def test_an_unreachable_target_is_refused_before_the_method_runs():
    cost = FakeCost([10, 40, 20, 30], [True] * 4, 100)
    message = (
        "target: macs=0.5 is out of reach: layers that can't be removed, and one per segment (k=2), leave at least "
        "0.65 of the dense network's macs"
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        search_keep_count(0.5, cost, lambda keep: pytest.fail("the method ran"), [(0, 1), (2, 3)])
    with pytest.raises(BudgetError, match="no layer of this network can be removed"):
        search_keep_count(
            0.5, FakeCost([1, 2], [False, False], 3), lambda keep: pytest.fail("the method ran"), [(0, 1)]
        )


def test_every_number_is_tried_for_a_method_that_keeps_the_large_layers():
    """One layer of cost 30 costs more than three layers of cost 1."""
    cost = FakeCost([30, 1, 1, 1], [True] * 4, 10)
    plans = {1: {1, 2, 3}, 2: {2, 3}, 3: {0}}
    result = search_keep_count(0.5, cost, lambda keep: (plan_of(cost.layers, plans[keep]), []), [(0, 3)])
    assert result.plan.kept == ("l1", "l2", "l3")
    plans[3] = {1}
    with pytest.raises(BudgetError, match=r"the method's plans leave at least 0\.931 of"):  # 40 / 43
        search_keep_count(0.5, cost, lambda keep: (plan_of(cost.layers, plans[keep]), []), [(0, 3)])


@pytest.mark.parametrize(("name", "kind"), [("sglp", "macs"), ("cka", "parameters"), ("tail", "macs")])
def test_no_larger_number_of_layers_meets_the_target(network, digits, name, kind):
    """Brute force: measure the pruned network for every number of layers."""
    case = cases.cnn(network, digits)
    case = case if name == "sglp" else case._replace(segments=[(0, 9)])
    inputs = case.batches[0][0]
    plan_for = functools.cache(lambda keep: case.run(name, keep))
    keeps = range(4 if name == "sglp" else 3, 11)
    shares = {keep: counted(kind, sglp.prune(case.network, plan_for(keep)[0]), inputs) for keep in keeps}
    shares = {keep: count / shares[10] for keep, count in shares.items()}
    cost = RemainingCost(kind, case.network, case.layers, inputs)
    for share in (0.95, 0.6, shares[keeps[0]] + 1e-9):
        result = search_keep_count(share, cost, plan_for, case.segments)
        assert len(result.plan.kept) == max(keep for keep, value in shares.items() if value <= share)
        assert result.share == shares[len(result.plan.kept)]


def test_latency_is_the_median_over_alternating_rounds(network, digits, monkeypatch):
    """A fake clock: passes take 10 ms plus 2 ms per block, on a machine that is busy now and then."""
    layers, order, clock = sglp.find_layers(network.train(), digits[0][:2]), [], [0.0]
    monkeypatch.setattr("sglp.latency.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def run(net, inputs):
        blocks = len(net.layer1) + len(net.layer2) + len(net.layer3)
        order.append((blocks, net.training, torch.is_grad_enabled()))
        clock[0] += (0.01 + 0.002 * blocks) * (9 if len(order) % 29 == 0 else 1)

    monkeypatch.setattr("sglp.target.call", run)
    monkeypatch.setattr("sglp.target.ROUNDS", 9)
    cost = RemainingCost("latency", network, layers, digits[0][:2])
    share = cost.share(plan_of(layers, {1, 2, 3, 5, 6}))
    assert share == pytest.approx((0.01 + 0.008) / (0.01 + 0.018))
    assert set(order) == {(9, False, False), (4, False, False)}
    timed = [blocks for blocks, *_ in order[8:]]  # after the warm-up and the choice of repeats
    assert [blocks for i, blocks in enumerate(timed) if i == 0 or timed[i - 1] != blocks] == [9, 4] * 9
    assert network.training

    order_of_removal = [1, 2, 3, 5, 6, 8, 9]
    result = search_keep_count(0.8, cost, lambda keep: (plan_of(layers, order_of_removal[: 10 - keep]), []), [(0, 9)])
    assert result.share <= 0.8
    assert len(result.plan.removed) == 3  # each saves 2 of 28 ms
    with pytest.raises(BudgetError, match=r"^target: latency=0.1 is out of reach: .* leave at least 0\.5\d* of"):
        search_keep_count(0.1, cost, lambda keep: pytest.fail("the method ran"), [(0, 9)])


def test_a_forward_pass_of_one_sample_is_timed(network, digits, monkeypatch):
    monkeypatch.setattr("sglp.target.ROUNDS", 2)
    layers, seen = sglp.find_layers(network, digits[0][:2]), []
    network.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    share = RemainingCost("latency", network, layers, digits[0][:5]).share(plan_of(layers, {1, 2, 3, 5, 6, 8, 9}))
    assert 0.1 < share < 0.9
    assert set(seen) == {(1, 1, 8, 8)}


@pytest.mark.parametrize("target", [{"parameters": 0.7}, {"latency": 0.9}])
def test_the_stage_and_the_report_give_the_requested_and_the_reached_share(finished, tmp_path, monkeypatch, target):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    monkeypatch.chdir(project)
    ((kind, share),) = target.items()
    params = pipeline.read_yaml(project / "params.yaml")
    pipeline.write_yaml(project / "params.yaml", params | {"target": target, "prune_ratio": 0.0, "method": "tail"})
    pipeline.run_stages(project, ["segment", "score", "report"])
    recorded = json.loads((project / "reports/metrics.json").read_text())["target"]
    assert (recorded["of"], recorded["asked"]) == (kind, share)
    assert recorded["reached"] <= share
    assert json.loads((project / "data/plan.json").read_text())["removed"]
    requested, remaining = f"{100 * share:g} %", f"{100 * recorded['reached']:.1f} %"
    sentence = f"Target: at most {requested} of the dense network's {kind}; the plan has {remaining}"
    markdown, html = ((project / f"reports/report.{form}").read_text() for form in ("md", "html"))
    assert sentence in markdown
    assert sentence.replace("'", "&#39;") in html
    assert ("timed on one sample before fine-tuning; the benchmark gives" in markdown) == (kind == "latency")
    assert f"-S target=null -S 'target={{{kind}: {share}}}'" in markdown


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": {"macs": 1.5}}, "params.yaml: target.macs=1.5 is wrong: it must be less than 1"),
        (
            {"target": {"mac": 0.5}},
            "params.yaml: target.mac is not a valid key; the valid keys are latency, macs, parameters",
        ),
        (
            {"target": {}},
            "params.yaml: target: it must be null or have exactly one of macs, parameters and latency, e.g. {macs: "
            "0.5}",
        ),
        ({"target": {"macs": 0.5, "latency": 0.5}}, "params.yaml: target: it must be null or have exactly one of"),
        ({"target": 0.5}, "params.yaml: target=0.5 is wrong: it must be"),
        ({"target": {"macs": 0.5}, "score": {"budget": [2, 1]}}, "score.budget=[2, 1] and a target can't both set"),
    ],
)
def test_a_wrong_target_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, sentence):
    project = pipeline.make_project(tmp_path / "project")
    monkeypatch.chdir(project)
    params = pipeline.read_yaml(project / "params.yaml")
    pipeline.write_yaml(project / "params.yaml", pipeline.merged(params, changes))
    assert sentence in pipeline.complaint("tools.check")


def test_a_target_takes_the_ratios_place_in_comparisons():
    runs = [record("a"), record("b", prune_ratio=0.3), record("c", target=None), record("d", target__macs=0.4)]
    runs += [record("e", target__macs=0.4, prune_ratio=0.3), record("f", target__latency=0.4)]
    kept, left_out = distinct(runs)
    assert [run.name for run in kept] == ["c", "b", "e", "f"]
    assert left_out == {"a": "has the same parameters as c", "d": "has the same parameters as e"}
    labels = [setting.label for setting in compared(kept)]
    assert labels == ["sglp · latency=0.4", "sglp · macs=0.4", "sglp · prune_ratio=0.3", "sglp · prune_ratio=0.5"]
