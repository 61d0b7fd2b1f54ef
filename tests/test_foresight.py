"""How well criteria predict outcomes: known scores and outcomes give known correlations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from synthetic_runs import language, record

import sglp
from experiments import foresight
from experiments.outcomes import compare
from experiments.snapshot import Snapshot
from sglp.loss import cross_entropy
from stages.support.params import read_yaml

SNAPSHOT = Snapshot("root", "c0ffee" * 7, "tree")


@pytest.fixture
def found():
    """A comparison of twelve plans; the first ran twice."""
    draw = np.random.default_rng(3)
    plans = [tuple(sorted(draw.choice(np.arange(1, 10), 5, replace=False).tolist())) for _ in range(12)]
    runs = [record(f"run{i}", seed=i, removed=plan, quality=draw.random()) for i, plan in enumerate(plans)]
    return compare([*runs, runs[0]._replace(name="again", params=runs[0].params | {"seed": 99})])


@pytest.fixture
def calls(found, tmp_path, monkeypatch):
    """Replace criteria by sums of indices; returns their calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    calls = []

    def find(name):
        def criterion(network, layers, batches, loss, seed, random_inits):
            def score(kept, removed, already_removed):
                assert sorted([*kept, *removed]) == list(range(len(layers)))
                assert already_removed == ()
                calls.append((name, tuple(removed)))
                return sum(kept) * (-1 if name == "loss" else 1)

            return score

        return criterion

    monkeypatch.setattr(foresight.sglp, "find_criterion", find, raising=False)
    monkeypatch.setattr(foresight, "_dense", lambda record, snapshot: (None, range(10), []))
    return calls


def test_plans_have_the_mean_quality_of_their_runs(found):
    first = found.records[0].metrics
    again = found.records[-1]._replace(metrics=first | {"finetuned": first["finetuned"] | {"accuracy": 0}})
    plans = foresight.plans_of(compare([*found.records[:-1], again]))
    assert len(plans) == len({record.removed for record in found.records}) <= 12
    assert plans.loc[[again.removed], "finetuned"].item() == pytest.approx(first["finetuned"]["accuracy"] / 2)
    assert plans.loc[[again.removed], "pruned"].item() == pytest.approx(first["pruned"]["accuracy"])
    runs = [language(f"run{i}", seed=i, quality=20 + i) for i in range(3)]
    assert sorted(foresight.plans_of(compare(runs))["finetuned"]) == [-22, -21, -20]


def test_every_criterion_is_correlated_with_the_outcome(found, calls):
    rows = {row[0]: row[1:] for row in foresight.table(found, SNAPSHOT).rows}
    plans = foresight.plans_of(found)
    kept = [45 - sum(removed) for removed in plans.index]
    rho = spearmanr(kept, plans["finetuned"]).statistic
    assert rows["gradnorm"][0] == f"{rho:+.2f}"
    assert rows["loss"][0] == f"{-rho:+.2f}"
    assert rows["gradnorm"][1] == rows["gradnorm"][0]  # all plans have as many parameters
    assert rows["parameters left"] == ["", "", ""]  # they do not vary
    assert not {"random", "gradnorm_leak"} & rows.keys()


def test_no_plan_is_scored_twice(found, calls):
    table = foresight.table(found, SNAPSHOT)
    assert len(calls) == len(set(calls)) == len(foresight.plans_of(found)) * (len(table.rows) - 1)
    count = len(calls)
    assert foresight.table(found, SNAPSHOT) == table
    assert len(calls) == count
    assert len(json.loads(foresight.KNOWN.read_text())) == count
    foresight.table(found, Snapshot("root", "decade" * 7, "tree"))  # an earlier commit
    assert len(calls) == count
    other = {"workload.files.train.sha256": "of other images"}
    changed = found._replace(records=[one._replace(params=one.params | other) for one in found.records])
    foresight.table(changed, SNAPSHOT)
    assert len(calls) == 2 * count


def test_few_plans_are_not_ranked(found, calls):
    assert foresight.table(compare(found.records[:9]), SNAPSHOT) is None
    assert calls == []


def test_criteria_are_given_a_runs_dense_network_and_samples_of_their_own(tmp_path, monkeypatch):
    content = read_yaml(Path("models/resnet20-digits.yaml"))
    dense = sglp.build(content["architecture"]["factory"], content["architecture"]["kwargs"], seed=0)
    sglp.save(dense, tmp_path / "resnet20-digits-pretrain/dense")
    monkeypatch.setattr(foresight, "network", lambda name, snapshot, which: tmp_path / name / which)
    monkeypatch.setattr(foresight.runs, "run", lambda params, target, snapshot: f"{params['model']}-{target}")
    monkeypatch.setattr(foresight, "files", lambda changes, snapshot: (changes, content))
    run = record("run", seed=0, removed=(1,), quality=0.5)
    run = run._replace(params=run.params | {"model": "resnet20-digits"})
    found, layers, batches = foresight._dense(run, SNAPSHOT)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), dense.parameters(), strict=True))
    assert len(layers) == 10  # stem, nine blocks
    ((inputs, labels),) = batches
    assert (inputs.shape, labels.shape) == ((128, 1, 8, 8), (128,))
    score = sglp.find_criterion("fitted_loss")(found, layers, batches, cross_entropy, 0, 1)
    assert np.isfinite(score([i for i in range(10) if i != 2], (2,), ()))
