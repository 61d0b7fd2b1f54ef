"""What knows beforehand how good a plan is: scores and outcomes that are known give correlations that are known."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic_runs import language, record

from experiments import foresight
from experiments.outcomes import compare
from experiments.snapshot import Snapshot

SNAPSHOT = Snapshot("root", "c0ffee" * 7, "tree")


@pytest.fixture
def found():
    """Twelve plans, the first of which ran twice."""
    draw = np.random.default_rng(3)
    plans = [tuple(sorted(draw.choice(np.arange(1, 10), 5, replace=False).tolist())) for _ in range(12)]
    runs = [record(f"run{i}", seed=i, removed=plan, quality=draw.random()) for i, plan in enumerate(plans)]
    return compare([*runs, runs[0]._replace(name="again", dials=runs[0].dials | {"seed": 99})])


@pytest.fixture
def asked(found, tmp_path, monkeypatch):
    """Criteria that know a network of numbers; how often they were asked."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def find(name):
        def criterion(network, layers, batches, loss, seed, draws):
            def score(kept, gone, before):
                assert sorted([*kept, *gone]) == list(range(len(layers)))
                assert before == ()
                calls.append((name, tuple(gone)))
                return sum(kept) * (-1 if name == "loss" else 1)

            return score

        return criterion

    monkeypatch.setattr(foresight.sglp, "find_criterion", find, raising=False)
    monkeypatch.setattr(foresight, "_dense", lambda record, snapshot: (None, range(10), []))
    return calls


def test_plans_have_the_mean_quality_of_their_runs(found):
    first = found.records[0].metrics
    found.records[-1] = found.records[-1]._replace(metrics=first | {"finetuned": first["finetuned"] | {"accuracy": 0}})
    plans = foresight.plans_of(found)
    assert len(plans.removed) == len({record.removed for record in found.records}) <= 12
    assert plans.tuned[0] == pytest.approx(first["finetuned"]["accuracy"] / 2)
    assert plans.pruned[0] == pytest.approx(first["pruned"]["accuracy"])
    runs = [language(f"run{i}", seed=i, quality=20 + i) for i in range(3)]
    assert sorted(foresight.plans_of(compare(runs)).tuned) == [-22, -21, -20]


def test_every_criterion_is_correlated_with_the_outcome(found, asked):
    rows = {row[0]: row[1:] for row in foresight.table(found, SNAPSHOT).rows}
    plans = foresight.plans_of(found)
    kept = [45 - sum(removed) for removed in plans.removed]
    rho = spearmanr(kept, plans.tuned).statistic
    assert rows["gradnorm"][0] == f"{rho:+.2f}"
    assert rows["loss"][0] == f"{-rho:+.2f}"
    assert rows["gradnorm"][1] == rows["gradnorm"][0]  # all plans have as many parameters
    assert rows["parameters left"] == ["", "", ""]  # they do not vary
    assert not {"random", "gradnorm_leak"} & rows.keys()


def test_no_plan_is_scored_twice(found, asked):
    table = foresight.table(found, SNAPSHOT)
    assert len(asked) == len(set(asked)) == len(foresight.plans_of(found).removed) * (len(table.rows) - 1)
    count = len(asked)
    assert foresight.table(found, SNAPSHOT) == table
    assert len(asked) == count
    assert len(json.loads(foresight.KNOWN.read_text())) == count
    foresight.table(found, Snapshot("root", "decade" * 7, "tree"))  # another commit's networks are others
    assert len(asked) == 2 * count


def test_few_plans_tell_nothing(found, asked):
    assert foresight.table(found._replace(records=found.records[:9]), SNAPSHOT) is None
    assert asked == []
