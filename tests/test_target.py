"""Targets: what plans leave is what surgery leaves, and of all numbers of layers the largest that meets a target."""

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


def plan_of(layers, gone):
    names = [layer.name for layer in layers]
    return sglp.Plan([n for i, n in enumerate(names) if i not in gone], [names[i] for i in sorted(gone)])


def counted(of, network, inputs):
    return count_macs(network, inputs) if of == "macs" else count_parameters(network)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


class Tied(nn.Module):
    """Four blocks: two share a matrix with each other, one with the head, and one is also known by another name."""

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
        found, inputs = Tied(), torch.ones(2, 3)
        return found, sglp.find_layers(found, inputs), inputs
    made = cases.cnn(network, digits) if request.param == "cnn" else cases.llama()
    return made.network, made.layers, made.batches[0][0]


@pytest.mark.parametrize("of", ["macs", "parameters"])
def test_a_plan_leaves_what_surgery_leaves(case, of):
    network, layers, inputs = case
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost, free = RemainingCost(of, network, layers, inputs), [i for i, layer in enumerate(layers) if layer.removable]
    for size in range(len(free) + 1):
        plan = plan_of(layers, free[size // 2 :][:size])
        assert cost.share(plan) == counted(of, sglp.prune(network, plan), inputs) / counted(of, network, inputs)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())


class MadeUp:
    """The cost of a network that is not there."""

    of = "macs"

    def __init__(self, costs, removable, outside):
        self.layers = [Layer(f"l{i}", can, "", 0, c) for i, (c, can) in enumerate(zip(costs, removable, strict=True))]
        self.of_layers, self.dense = costs, outside + sum(costs)
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
    return MadeUp(costs, removable, draw(st.integers(1, 40))), segments, draw(st.randoms(use_true_random=False))


def able(layers, segments, gone):
    """The layers that can go after others went: every segment keeps one."""
    spare = [(a, b) for a, b in segments if sum(a <= i <= b for i in gone) < b - a]
    return [i for a, b in spare for i in range(a, b + 1) if layers[i].removable and i not in gone]


def orders(layers, segments, random, nested):
    """The plans of a method by how many layers stay: one after another from one order, or each drawn anew."""
    plans = {len(layers): plan_of(layers, set())}
    gone = []
    while able(layers, segments, gone):
        size = len(gone) + 1
        gone = gone if nested else []
        while len(gone) < size:
            gone = [*gone, random.choice(able(layers, segments, gone))]
        plans[len(layers) - size] = plan_of(layers, set(gone))
    return plans


SHARES = st.integers(1, 99).map(lambda hundredths: hundredths / 100)


@settings(deadline=None, max_examples=150)
@given(networks(), SHARES, st.booleans())
def test_the_most_layers_that_meet_a_target_stay(made, share, nested):
    cost, segments, random = made
    plans, asked = orders(cost.layers, segments, random, nested), []
    able_to = [keep for keep, plan in plans.items() if cost.share(plan) <= share]

    def ask(keep):
        asked.append(keep)
        return plans[keep], [keep]

    if not able_to:
        with pytest.raises(
            BudgetError, match=rf"^target: macs={share:g} is out of reach: .* of the dense network's macs"
        ):
            search_keep_count(share, cost, ask, segments)
        return
    met = search_keep_count(share, cost, ask, segments)
    assert cost.share(met.plan) == met.share <= share
    assert plans[met.rows[0]] == met.plan
    assert len(asked) == len(set(asked))
    if nested:  # else more layers can cost less, and no search but that of all is sure to find them
        assert len(met.plan.kept) == max(able_to)
        assert len(asked) <= 1 + math.ceil(math.log2(len(plans)))


@settings(deadline=None, max_examples=60)
@given(networks(), SHARES)
def test_what_is_said_to_be_in_reach_is(made, share):
    cost, segments, _ = made

    def cheapest(keep):
        """The method that saves most."""
        gone = []
        while len(gone) < len(cost.layers) - keep:
            gone.append(max(able(cost.layers, segments, gone), key=lambda i: cost.of_layers[i]))
        return plan_of(cost.layers, set(gone)), []

    try:
        search_keep_count(share, cost, cheapest, segments)
    except BudgetError as error:
        least = float(re.search(r"leave ([\d.]+) of", str(error))[1])
        assert least > share
        if least < 1:
            assert search_keep_count(least, cost, cheapest, segments).share <= least
            with pytest.raises(BudgetError, match="out of reach"):
                search_keep_count(least - 0.002, cost, cheapest, segments)


def test_equal_layers_are_asked_about_once():
    cost, asked = MadeUp([10] * 40, [True] * 40, 100), []

    def ask(keep):
        asked.append(keep)
        return plan_of(cost.layers, set(range(40 - keep))), []

    assert search_keep_count(0.5, cost, ask, [(0, 39)]).share == 0.5
    assert asked == [15]  # (100 + 150) / 500


@pytest.mark.parametrize(("of", "saved"), [("latency", 1), ("macs", 0.5)])
def test_where_costs_do_not_say_where_to_look_few_are_asked_about(of, saved):
    """Time, and layers that share half of what they have: of 64 layers never more than two bisections of them."""
    cost, asked = MadeUp([10] * 64, [True] * 64, 100), []
    cost.of, share = of, cost.share
    cost.share = lambda plan: 1 - saved * (1 - share(plan))

    def ask(keep):
        asked.append(keep)
        return plan_of(cost.layers, set(range(64 - keep))), []

    met = search_keep_count(0.6, cost, ask, [(0, 63)])
    assert len(met.plan.removed) == math.ceil(0.4 * 740 / saved / 10)
    assert len(asked) <= 8


def test_what_can_not_be_met_is_told_before_anything_is_asked():
    cost = MadeUp([10, 40, 20, 30], [True] * 4, 100)
    message = (
        "target: macs=0.5 is out of reach: layers that can't go, and one a segment (k=2), leave 0.65 of the dense "
        "network's macs at least"
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        search_keep_count(0.5, cost, lambda keep: pytest.fail("asked"), [(0, 1), (2, 3)])
    with pytest.raises(BudgetError, match="no layer of this network can be removed"):
        search_keep_count(0.5, MadeUp([1, 2], [False, False], 3), lambda keep: pytest.fail("asked"), [(0, 1)])


def test_a_method_that_keeps_the_large_layers_is_walked_through():
    """The fewest layers cost more than some more of them: 1 of 30, or 3 of 1."""
    cost = MadeUp([30, 1, 1, 1], [True] * 4, 10)
    plans = {1: {1, 2, 3}, 2: {2, 3}, 3: {0}}
    met = search_keep_count(0.5, cost, lambda keep: (plan_of(cost.layers, plans[keep]), []), [(0, 3)])
    assert met.plan.kept == ("l1", "l2", "l3")
    plans[3] = {1}
    with pytest.raises(BudgetError, match=r"the method's plans leave 0\.931 of"):  # 40 / 43
        search_keep_count(0.5, cost, lambda keep: (plan_of(cost.layers, plans[keep]), []), [(0, 3)])


@pytest.mark.parametrize(("name", "of"), [("sglp", "macs"), ("cka", "parameters"), ("tail", "macs")])
def test_every_number_of_layers_was_tried_in_vain(network, digits, name, of):
    """Brute force: what methods leave with every number of layers, counted on what surgery leaves."""
    case = cases.cnn(network, digits)
    case = case if name == "sglp" else case._replace(segments=[(0, 9)])
    inputs = case.batches[0][0]
    ask = functools.cache(lambda keep: case.run(name, keep))
    keeps = range(4 if name == "sglp" else 3, 11)
    left = {keep: counted(of, sglp.prune(case.network, ask(keep)[0]), inputs) for keep in keeps}
    left = {keep: count / left[10] for keep, count in left.items()}
    cost = RemainingCost(of, case.network, case.layers, inputs)
    for share in (0.95, 0.6, left[keeps[0]] + 1e-9):
        met = search_keep_count(share, cost, ask, case.segments)
        assert len(met.plan.kept) == max(keep for keep, value in left.items() if value <= share)
        assert met.share == left[len(met.plan.kept)]


def test_latency_is_the_median_of_what_both_take_in_turn(network, digits, monkeypatch):
    """Work that takes 10 ms and 2 ms a block, on a machine that is now and then busy, by a clock of our own."""
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
    timed = [blocks for blocks, *_ in order[8:]]  # after the warm-up and a look at how long it takes
    assert [blocks for i, blocks in enumerate(timed) if i == 0 or timed[i - 1] != blocks] == [9, 4] * 9
    assert network.training

    going = [1, 2, 3, 5, 6, 8, 9]
    met = search_keep_count(0.8, cost, lambda keep: (plan_of(layers, going[: 10 - keep]), []), [(0, 9)])
    assert met.share <= 0.8
    assert len(met.plan.removed) == 3  # each saves 2 of 28 ms
    with pytest.raises(BudgetError, match=r"^target: latency=0.1 is out of reach: .* leave 0\.5\d* of"):
        search_keep_count(0.1, cost, lambda keep: pytest.fail("asked"), [(0, 9)])


def test_a_forward_pass_of_one_sample_is_timed(network, digits, monkeypatch):
    monkeypatch.setattr("sglp.target.ROUNDS", 2)
    layers, seen = sglp.find_layers(network, digits[0][:2]), []
    network.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    share = RemainingCost("latency", network, layers, digits[0][:5]).share(plan_of(layers, {1, 2, 3, 5, 6, 8, 9}))
    assert 0.1 < share < 0.9
    assert set(seen) == {(1, 1, 8, 8)}


@pytest.mark.parametrize("target", [{"parameters": 0.7}, {"latency": 0.9}])
def test_stage_and_report_say_what_was_asked_and_what_was_reached(finished, tmp_path, monkeypatch, target):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    monkeypatch.chdir(project)
    ((of, share),) = target.items()
    params = pipeline.read_yaml(project / "params.yaml")
    pipeline.write_yaml(project / "params.yaml", params | {"target": target, "prune_ratio": 0.0, "method": "tail"})
    pipeline.run_stages(project, ["segment", "score", "report"])
    found = json.loads((project / "reports/metrics.json").read_text())["target"]
    assert (found["of"], found["asked"]) == (of, share)
    assert found["reached"] <= share
    assert json.loads((project / "data/plan.json").read_text())["removed"]
    asked, left = f"{100 * share:g} %", f"{100 * found['reached']:.1f} %"
    said = f"Asked for at most {asked} of the dense network's {of}, the plan leaves {left}"
    markdown, html = ((project / f"reports/report.{form}").read_text() for form in ("md", "html"))
    assert said in markdown
    assert said.replace("'", "&#39;") in html
    assert ("as one sample was timed before tuning; the benchmark has" in markdown) == (of == "latency")
    assert f"-S target=null -S 'target={{{of}: {share}}}'" in markdown


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": {"macs": 1.5}}, "params.yaml: target.macs=1.5 is wrong: input should be less than 1"),
        ({"target": {"mac": 0.5}}, "params.yaml: target.mac is no key; it can be one of latency, macs, parameters"),
        (
            {"target": {}},
            "params.yaml: target: it must be null, or have one of macs, parameters, latency, as macs: 0.5",
        ),
        ({"target": {"macs": 0.5, "latency": 0.5}}, "params.yaml: target: it must be null, or have one of macs"),
        ({"target": 0.5}, "params.yaml: target=0.5 is wrong: input should be"),
        ({"target": {"macs": 0.5}, "score": {"budget": [2, 1]}}, "score.budget=[2, 1] and a target can't both say"),
    ],
)
def test_a_wrong_target_is_told_before_anything_runs(tmp_path, monkeypatch, changes, sentence):
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
    assert left_out == {"a": "asks the same as c", "d": "asks the same as e"}
    labels = [setting.label for setting in compared(kept)]
    assert labels == ["sglp · latency=0.4", "sglp · macs=0.4", "sglp · prune_ratio=0.3", "sglp · prune_ratio=0.5"]
