"""Experiments as records, read from a real DVC repository with tiny stages."""

import os
import subprocess
from pathlib import Path

import pytest
from pipeline import command_environment, read_yaml, write_yaml

from experiments.outputs import stages_in
from experiments.records import ExperimentError, read, record_of
from experiments.runs import checksums
from experiments.snapshot import Snapshot

STAGE = """
import json, pathlib, sys
from ruamel.yaml import YAML

def write(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

params = YAML(typ="safe", pure=True).load(open("params.yaml"))
k, stage = params["k"], sys.argv[1]
if stage == "plan":
    rows = "name,removable,reason,parameters,macs", "stem,False,first,1,2", "a,True,,3,4", "b,True,,3,4"
    write("data/layers.csv", "\\n".join(rows))
    write("data/segments.json", json.dumps([[0, 0], [1, 2]]))
    rows = "segment,kept,score,search,best", "0,0,1.5,exhaustive,1", f"1,1,{k}.5,exhaustive,1", "1,,-inf,beam 4,0"
    write("data/scores.csv", "\\n".join(rows))
    write("data/plan.json", json.dumps({"kept": ["stem", "ab"[k % 2]], "removed": ["ba"[k % 2]]}))
    write("reports/scoring.json", json.dumps({"seconds": 0.5, "forward_passes": k}))
elif stage == "evaluate":
    metrics = {"accuracy": k / 10, "robust": {"fgsm": 0.5}, "samples": 9, "macs": 7, "params": 5}
    write(f"reports/metrics/{sys.argv[2]}.json", json.dumps(metrics))
else:
    write("reports/benchmark.json", json.dumps({"batch": {}, "repeats": params["benchmark"]["repeats"], "k": k}))
"""
MODEL = {
    "task": "image_classification",
    "files": {"train": {"path": "/somewhere", "sha256": None}},
    "finetune": {"epochs": 3},
}
FILES = {
    "params.yaml": {"model": "tiny", "k": 2, "seed": 0, "method": "sglp", "benchmark": {"repeats": 5}},
    "models/tiny.yaml": MODEL,
    "dvc.yaml": {
        "stages": {
            "plan": {
                "cmd": "python stage.py plan",
                "deps": ["stage.py"],
                "params": ["k", "seed", {"models/${model}.yaml": ["files"]}],
                "outs": [
                    "data/layers.csv",
                    "data/segments.json",
                    "data/scores.csv",
                    "data/plan.json",
                    "reports/scoring.json",
                ],
            },
            "evaluate": {
                "foreach": ["dense", "pruned", "reconstructed", "finetuned"],
                "do": {
                    "cmd": "python stage.py evaluate ${item}",
                    "deps": ["data/plan.json", "stage.py"],
                    "params": ["k"],
                    "outs": ["reports/metrics/${item}.json"],
                },
            },
            "benchmark": {
                "cmd": "python stage.py benchmark",
                "deps": ["data/plan.json", "stage.py"],
                "params": ["benchmark.repeats"],
                "outs": ["reports/benchmark.json"],
            },
        }
    },
}


class Repository:
    """A git and DVC repository."""

    def __init__(self, folder: Path):
        self.folder = folder
        for path, content in FILES.items():
            write_yaml(folder / path, content)
        (folder / "stage.py").write_text(STAGE)
        (folder / ".gitignore").write_text("/data/\n/reports/\n")
        self.run("git init -q -b main")
        self.run("dvc init -q")
        self.run("git add -A")
        self.run("git commit -q -m start")

    def run(self, command: str) -> str:
        """Run a command and return its output."""
        who = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        environment = command_environment(self.folder.parent / "cache") | who | {"DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(command.split(), cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def experiment(self, name: str, change) -> None:
        """Add a copy of the first experiment, after `change()` of the files of its commit."""
        start = self.run("git rev-parse main")
        self.run("git checkout -q --force --detach two")
        change()
        self.run("git add -A")
        made = self.run("git stash create")
        self.run(f"git update-ref refs/exps/{start[:2]}/{start[2:]}/{name} {made}")
        self.run("git checkout -q --force main")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    """A repository with the experiments two (all stages) and three (without benchmark)."""
    made = Repository(tmp_path_factory.mktemp("repository") / "project")
    made.run("dvc exp run -q -n two")
    made.run("dvc exp run -q -n three -S k=3 evaluate")
    start = made.run("git rev-parse main")
    made.run(f"git tag two refs/exps/{start[:2]}/{start[2:]}/two")
    made.run("git checkout -q --force main")
    return made


@pytest.fixture
def inside(repository, monkeypatch) -> Repository:
    monkeypatch.chdir(repository.folder)
    return repository


def test_a_record_has_all_outputs_of_a_run(inside):
    reading = read()
    (two,) = (record for record in reading.records if record.name == "two")
    assert two.params == {
        "model": "tiny",
        "k": 2,
        "seed": 0,
        "method": "sglp",
        "benchmark.repeats": 5,
        "workload.task": "image_classification",
        "workload.files.train.sha256": None,
        "workload.finetune.epochs": 3,
    }
    assert two.layers[1] == {"name": "a", "removable": True, "parameters": 3, "macs": 4}
    assert (two.segments, two.removed) == ([(0, 0), (1, 2)], (2,))
    assert [(row.segment, row.kept, row.score) for row in two.scores] == [
        (0, (0,), 1.5),
        (1, (1,), 2.5),
        (1, (), float("-inf")),
    ]
    assert two.metrics["finetuned"] == {"accuracy": 0.2, "robust.fgsm": 0.5, "samples": 9, "macs": 7, "params": 5}
    assert two.cost == {"seconds": 0.5, "forward_passes": 2}
    assert two.benchmark["k"] == 2
    assert reading.defaults == {"tiny": two.params}


def test_a_run_without_benchmark_is_the_same_record(inside):
    (two,) = (record for record in read().records if record.name == "two")
    without = {path: md5 for path, md5 in checksums("two").items() if path != "reports/benchmark.json"}
    found = record_of("two", {"k": 2}, without, Snapshot.take())
    assert found == two._replace(benchmark=None)
    with pytest.raises(ExperimentError, match=r"it did not make data/plan\.json"):
        record_of("two", {"k": 2}, {path: md5 for path, md5 in without.items() if "plan" not in path}, Snapshot.take())
    with pytest.raises(ExperimentError, match=r"plan\.json is not in the cache"):
        record_of("two", {"k": 2}, without | {"data/plan.json": "0" * 32}, Snapshot.take())


def test_outputs_of_an_earlier_run_are_not_read(inside):
    """The experiment's dvc.lock still lists the benchmark of the one before."""
    assert "benchmark" in stages_in(_lock(inside, "three"))
    (three,) = (record for record in read().records if record.name == "three")
    assert three.removed == (1,)
    assert three.metrics["dense"]["accuracy"] == 0.3
    assert three.benchmark is None


def test_runs_that_lack_something_are_left_out_with_the_reason(inside):
    def changed(**params):
        return lambda: write_yaml(inside.folder / "params.yaml", FILES["params.yaml"] | params)

    def without(stage):
        def change():
            lock = read_yaml(inside.folder / "dvc.lock")
            del lock["stages"][stage]
            write_yaml(inside.folder / "dvc.lock", lock)

        return change

    def lost():
        lock = read_yaml(inside.folder / "dvc.lock")
        for out in lock["stages"]["plan"]["outs"]:
            out["md5"] = "0" * 32 if out["path"] == "data/segments.json" else out["md5"]
        write_yaml(inside.folder / "dvc.lock", lock)

    inside.experiment("other-k", changed(k=4))
    inside.experiment("other-seed", changed(seed=5))
    inside.experiment("other-rounds", changed(benchmark={"repeats": 6}))
    inside.experiment("other-model", changed(model="missing"))
    inside.experiment("no-metrics", without("evaluate@pruned"))
    inside.experiment("nothing", (inside.folder / "dvc.lock").unlink)
    inside.experiment("lost", lost)
    reading = read()
    assert reading.left_out == {
        "other-k": "its reports/metrics/dense.json is an earlier run's: the stage evaluate@dense did not run",
        "other-seed": "its reports/metrics/dense.json is an earlier run's: the stage evaluate@dense did not run",
        "other-model": "models/missing.yaml is not in its commit",
        "no-metrics": "it did not make reports/metrics/pruned.json",
        "nothing": "it did not make reports/metrics/dense.json",
        "lost": "data/segments.json is not in the cache: if it was pushed, run 'dvc exp pull'",
    }
    found = {record.name: record for record in reading.records}
    assert found.keys() == {"two", "three", "other-rounds"}
    assert found["other-rounds"].benchmark is None
    assert found["other-rounds"].removed == found["two"].removed


def test_code_that_was_not_committed_is_another_setting(inside):
    def changed(text):
        return lambda: (inside.folder / "stage.py").write_text(STAGE + text)

    inside.experiment("code", changed("# one"))
    inside.experiment("other-code", changed("# another"))
    inside.experiment("notes", lambda: (inside.folder / "notes.txt").write_text("no stage reads it"))
    params = {record.name: record.params for record in read().records}
    codes = {name: found.get("code") for name, found in params.items()}
    assert codes["two"] is codes["notes"] is None
    assert len({codes["two"], codes["code"], codes["other-code"]}) == 3
    assert {key: value for key, value in params["code"].items() if key != "code"} == params["two"]


def test_experiments_of_another_commit_need_its_name(inside):
    start = inside.run("git rev-parse main")
    inside.run("git commit -q --allow-empty -m later")
    try:
        with pytest.raises(ExperimentError, match=rf"no experiments of HEAD, .*{start[:7]} has \d"):
            read()
        assert {record.name for record in read("HEAD~1").records} >= {"two", "three"}
        with pytest.raises(ExperimentError, match=r"can't be read: .*nowhere"):
            read("nowhere")
    finally:
        inside.run("git reset -q --hard HEAD~1")


def test_outside_a_project_the_error_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", os.fspath(tmp_path.parent))
    with pytest.raises(ExperimentError, match="experiments can't be read"):
        read()


def test_stages_are_read_without_the_checksums_of_code(inside):
    text = _lock(inside, "two")
    (inside.folder / "dvc.lock.whole").write_text(text)
    whole = read_yaml(inside.folder / "dvc.lock.whole")["stages"]
    found = stages_in(text)
    assert found.keys() == whole.keys()
    for name, stage in whole.items():
        assert found[name]["outs"] == stage["outs"]
        assert found[name]["params"] == stage["params"]
        assert found[name]["deps"] == ([dep for dep in stage["deps"] if dep["path"] != "stage.py"] or None)


def _lock(repository: Repository, name: str) -> str:
    start = repository.run("git rev-parse main")
    return repository.run(f"git show refs/exps/{start[:2]}/{start[2:]}/{name}:dvc.lock") + "\n"
