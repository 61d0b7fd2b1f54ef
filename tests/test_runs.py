"""Runs of the pipeline: names and files, and that the workspace does not change."""

import re
import subprocess

import pytest
from fake_pipeline import FakeProject
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import read_yaml
from ruamel.yaml import YAML

from experiments import runs
from experiments.errors import RunError
from experiments.snapshot import Snapshot, readable

EPOCHS = "models/tiny.yaml:finetune.epochs"


@pytest.fixture
def project(tmp_path, monkeypatch) -> FakeProject:
    return FakeProject(tmp_path).enter(monkeypatch)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.text(), st.floats(), st.none(), st.lists(st.integers())), max_size=30))
def test_names_are_names_to_git(values):
    name = readable({f"models/a.yaml:part.key{i}": value for i, value in enumerate(values)}) + "-0123456789"
    assert len(name) <= 71
    assert re.fullmatch("[A-Za-z0-9_=.-]+", name)
    subprocess.run(["git", "check-ref-format", f"refs/exps/ab/cd/{name}"], check=True)


def test_a_name_contains_parameters_and_a_hash_of_everything_that_matters(project):
    name = runs.name_of({"k": 5, EPOCHS: 7, "method": "my_nets:mine"})
    assert name.startswith("k=5-epochs=7-method=my_nets_mine-")
    assert name == runs.name_of({"k": 5, EPOCHS: 7, "method": "my_nets:mine"})
    as_is = runs.identity(runs.name_of({}))
    assert as_is == runs.identity(runs.name_of({"k": 3})), "params.yaml has k: 3 anyway"
    others = [{"k": 4}, {"k": "auto"}, {EPOCHS: 7}, {"score.budget": [3, 4]}, {"score.budget": [34]}]
    assert len({as_is, *(runs.identity(runs.name_of(params)) for params in others)}) == 6
    assert as_is != runs.identity(runs.name_of({}, target="score"))


def test_edits_that_change_results_change_the_name(project):
    (project.folder / "README.md").write_text("first")
    project.git("add", "README.md")
    names = [runs.name_of({})]
    project.replace("README.md", "first", "second")
    project.replace("params.yaml", "k: 3", "k: 3 # a comment")
    assert [runs.name_of({})] == names
    for path, old, new in [
        ("params.yaml", "seed: 0", "seed: 1"),
        ("models/tiny.yaml", "epochs: 2", "epochs: 3"),
        ("stage.py", "import os", "import  os"),
        ("dvc.yaml", "segment:", "segment: "),
    ]:
        project.replace(path, old, new)
        assert runs.name_of({}) not in names
        names.append(runs.name_of({}))


def test_the_workspace_does_not_change(project):
    project.replace("params.yaml", "seed: 0", "seed: 1")
    project.git("add", "params.yaml")
    project.replace("params.yaml", "seed: 1", "seed: 2")
    (project.folder / "stage.py").unlink()
    before = project.git("status", "--porcelain")
    assert runs.Snapshot.take().values({})["params.yaml"]["seed"] == 2
    assert project.git("status", "--porcelain") == before == "MM params.yaml\n D stage.py"
    assert project.git("stash", "list") == ""


def test_a_snapshot_does_not_change_with_the_files(project):
    snapshot = Snapshot.take()
    project.replace("params.yaml", "seed: 0", "seed: 1")
    (project.folder / "models/tiny.yaml").unlink()
    assert "seed: 0" in snapshot.texts({"k": 2})["params.yaml"]
    assert "epochs: 2" in snapshot.texts({})["models/tiny.yaml"]
    assert "stage.py" in project.git("ls-tree", "--name-only", snapshot.tree)


@pytest.mark.parametrize(
    "value", [2, 0.25, 1e-5, 1e22, "auto", "1e-3", "no", "null", None, True, [3, 4], {}, "a: b#c", "ü"]
)
def test_texts_have_the_values(project, value):
    snapshot = Snapshot.take()
    text = snapshot.texts({"k": value})["params.yaml"]
    again = YAML(typ="safe", pure=True).load(text)
    assert again == snapshot.values({"k": value})["params.yaml"]
    assert type(again["k"]) is type(value)
    assert again == read_yaml(project.folder / "params.yaml") | {"k": value}


def test_an_untracked_workload_can_be_run(project):
    (project.folder / "models/mine.yaml").write_bytes((project.folder / "models/tiny.yaml").read_bytes())
    assert list(Snapshot.take().values({"model": "mine"})) == ["params.yaml", "models/mine.yaml"]
    with pytest.raises(RunError, match=r"there is no models/others\.yaml; workloads in models/ are mine, tiny"):
        runs.name_of({"model": "others"})


def test_without_a_commit_there_are_no_experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"there is no params.yaml in .*: run this in the project's folder"):
        runs.run({})
    (tmp_path / "params.yaml").touch()
    with pytest.raises(RunError, match="has no commit: experiments belong to one, so 'git commit' first"):
        runs.run({})


def test_runs_and_their_files(project, tmp_path):
    copies = project.folder / ".dvc/tmp/copies"
    (copies / "0/.git").mkdir(parents=True)
    (copies / "0.in_use").touch()  # as after a power cut: the folder is not a repository

    whole = runs.run({"k": 2})
    assert project.ran() == dict.fromkeys(
        ("cka", "segment", "score", "finetune", "evaluate@finetuned", "benchmark", "report"), 1
    )
    assert project.finished() == [whole]
    assert whole in project.git("for-each-ref", "refs/exps")
    assert [path.name for path in copies.iterdir() if path.suffix in (".log", ".in_use")] == []
    assert runs.run({"k": 2}) == whole

    part = runs.run({"k": 4}, target="finetune")
    assert project.finished() == [whole], "a partial run is not a result"
    assert runs.run({"k": 4}, target=["finetune"]) == part
    assert project.ran()["segment"] == project.ran()["finetune"] == 2
    assert project.ran()["report"] == 1

    assert runs.read(whole, "data/plan.json") == "0.5  1"
    assert runs.read(part, "data/plan.json") == "0.5  2"
    assert "seed: 0 # mine" in runs.read(part, "params.yaml")
    assert runs.checksums(part)["data/plan.json"] != runs.checksums(whole)["data/plan.json"]
    with pytest.raises(RunError, match=f"the experiment {part} does not have reports/metrics.json"):
        runs.read(part, "reports/metrics.json")
    with pytest.raises(RunError, match="there is no experiment other on HEAD"):
        runs.read("other", "params.yaml")

    runs.fetch(part, "data/finetuned", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model"]
    assert (tmp_path / "mine/model").read_text() == "0.5  20"
    for path in ("data/nothing", "data/plan.json"):
        with pytest.raises(RunError, match=f"does not have a folder {path}"):
            runs.fetch(part, path, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []

    before, md5 = project.ran(), runs.checksums(part)["data/plan.json"]
    cached = project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.unlink()  # like `dvc gc`, which does not see partial runs
    assert runs.run({"k": 4}, target="finetune") == part
    assert runs.read(part, "data/plan.json") == "0.5  2"
    assert runs.run({"k": 4}, target="finetune") == part
    assert project.ran() - before == {"score": 1}, "DVC takes the rest from its cache"

    project.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "more")
    assert project.finished() == []
    assert project.finished("HEAD~1") == [whole]
    assert runs.read(whole, "data/plan.json", "HEAD~1") == "0.5  1"
