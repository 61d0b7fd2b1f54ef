"""The outcome of runs outlasts the clone that measured them."""

import json

import pytest
from synthetic_runs import record

from experiments import runs
from experiments.errors import RunError
from experiments.ledger import LEDGER, Ledger
from experiments.outputs import flat_params
from experiments.snapshot import Snapshot

POINTS = {"k=3-aaaaaaaaaa": {"k": 3, "seed": 1}, "k=4-bbbbbbbbbb": {"k": 4, "seed": 0}}
SNAPSHOT = Snapshot("root", "c0ffee" * 7, "tree")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project, whose params.yaml has the changed parameters and a model."""
    monkeypatch.chdir(tmp_path)
    workload = {"files": {"train": {"path": "/mine", "sha256": "of it"}}}
    files = {"params.yaml": {"model": "net"}, "models/net.yaml": workload}
    monkeypatch.setattr(Snapshot, "values", lambda self, params: files | {"params.yaml": {"model": "net"} | params})


def test_added_runs_are_read_back(monkeypatch):
    one = record("k=3-aaaaaaaaaa", removed=(2, 5), quality=0.875)
    Ledger().add([one], SNAPSHOT.baseline)
    found = Ledger().records(POINTS, SNAPSHOT)
    assert list(found) == ["aaaaaaaaaa"]
    back = found["aaaaaaaaaa"]
    assert (back.removed, back.metrics, back.cost) == (one.removed, one.metrics, one.cost)
    assert back.params == {"model": "net", "k": 3, "seed": 1, "workload.files.train.sha256": "of it"}
    assert "/mine" not in LEDGER.read_text()


def test_a_run_is_identified_by_its_hash_and_added_once():
    Ledger().add([record("k=3-aaaaaaaaaa", quality=0.5)], SNAPSHOT.baseline)
    ledger = Ledger()
    assert "another_name-aaaaaaaaaa" in ledger
    assert "k=3-bbbbbbbbbb" not in ledger
    ledger.add([record("again-aaaaaaaaaa", quality=0.9), record("k=4-bbbbbbbbbb", quality=0.6)], "decade" * 7)
    lines = [json.loads(line) for line in LEDGER.read_text().splitlines()]
    assert [(line["run"], line["commit"]) for line in lines] == [
        ("k=3-aaaaaaaaaa", "c0ffeec"),
        ("k=4-bbbbbbbbbb", "decaded"),
    ]
    assert lines[0]["metrics"]["finetuned"]["accuracy"] == 0.5
    assert Ledger().commits(POINTS) == ["c0ffeec", "decaded"]
    assert Ledger().commits(["k=4-bbbbbbbbbb", "k=5-cccccccccc"]) == ["decaded"]


def test_the_error_names_a_line_that_is_not_json():
    Ledger().add([record("k=3-aaaaaaaaaa")], SNAPSHOT.baseline)
    LEDGER.write_text(LEDGER.read_text() + "<<<<<<< HEAD\n")
    with pytest.raises(RunError, match=r"docs/results.jsonl: line 2 is not JSON: '<<<<<<< HEAD'"):
        Ledger()


def test_lines_that_others_add_or_delete_are_respected():
    ledger = Ledger()
    ledger.add([record("k=3-aaaaaaaaaa")], SNAPSHOT.baseline)
    Ledger().add([record("k=4-bbbbbbbbbb")], SNAPSHOT.baseline)
    ledger.add([record("k=5-cccccccccc")], SNAPSHOT.baseline)
    assert len(LEDGER.read_text().splitlines()) == 3
    LEDGER.write_text("".join(line for line in LEDGER.read_text().splitlines(keepends=True) if "k=3" not in line))
    ledger.add([], SNAPSHOT.baseline)
    assert len(LEDGER.read_text().splitlines()) == 2


def test_the_same_runs_make_the_same_file():
    records = [record(name) for name in POINTS]
    Ledger().add(records, SNAPSHOT.baseline)
    text = LEDGER.read_text()
    LEDGER.unlink()
    Ledger().add(reversed(records), SNAPSHOT.baseline)
    assert LEDGER.read_text() == text


def test_parameters_are_flat_without_paths(tmp_path):
    workload = {"task": "t", "files": {"code": {"path": None, "sha256": None}}, "data": {"prepare": {"mean": [0.5]}}}
    assert flat_params({"k": 3, "cka": {"kernel": "rbf"}}, workload) == {
        "k": 3,
        "cka.kernel": "rbf",
        "workload.task": "t",
        "workload.files.code.sha256": None,
        "workload.data.prepare.mean": [0.5],
    }


def test_identities_are_of_names():
    assert runs.identity("k=3-method=sglp-0123456789") == "0123456789"
