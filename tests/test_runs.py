"""A run of the pipeline: what it is called, which files it has, and that it leaves the workspace alone."""

import re
import subprocess

import pytest
from fake_pipeline import FakeProject
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import read_yaml
from ruamel.yaml import YAML

from experiments import runs
from experiments.git import RunError
from experiments.snapshot import Snapshot, readable

EPOCHS = "models/tiny.yaml:finetune.epochs"


@pytest.fixture
def project(tmp_path, monkeypatch) -> FakeProject:
    """A project, in which this process stands."""
    found = FakeProject(tmp_path)
    monkeypatch.chdir(found.folder)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def edit(project: FakeProject, path: str, old: str, new: str) -> None:
    file = project.folder / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.text(), st.floats(), st.none(), st.lists(st.integers())), max_size=30))
def test_names_are_names_to_git(values):
    name = readable({f"models/a.yaml:part.dial{i}": value for i, value in enumerate(values)}) + "-0123456789"
    assert len(name) <= 71
    assert re.fullmatch("[A-Za-z0-9_=.-]+", name)
    subprocess.run(["git", "check-ref-format", f"refs/exps/ab/cd/{name}"], check=True)


def test_a_name_says_what_was_asked_and_hashes_all_that_counts(project):
    name = runs.name_of({"k": 5, EPOCHS: 7, "method": "my_nets:rival"})
    assert name.startswith("k=5-epochs=7-method=my_nets_rival-")
    assert name == runs.name_of({"k": 5, EPOCHS: 7, "method": "my_nets:rival"})
    as_is = runs.name_of({}).rpartition("-")[2]
    assert as_is == runs.name_of({"k": 3}).rpartition("-")[2], "params.yaml has k: 3 anyway"
    others = [{"k": 4}, {"k": "auto"}, {EPOCHS: 7}, {"score.budget": [3, 4]}, {"score.budget": [34]}]
    assert len({as_is, *(runs.name_of(dials).rpartition("-")[2] for dials in others)}) == 6
    assert as_is != runs.name_of({}, target="score").rpartition("-")[2]


def test_edits_that_change_results_change_the_name(project):
    (project.folder / "README.md").write_text("first")
    project.git("add", "README.md")
    known = [runs.name_of({})]
    edit(project, "README.md", "first", "second")
    edit(project, "params.yaml", "k: 3", "k: 3 # a comment")
    assert [runs.name_of({})] == known
    for path, old, new in [
        ("params.yaml", "seed: 0", "seed: 1"),
        ("models/tiny.yaml", "epochs: 2", "epochs: 3"),
        ("stage.py", "import os", "import  os"),
        ("dvc.yaml", "segment:", "segment: "),
    ]:
        edit(project, path, old, new)
        assert runs.name_of({}) not in known
        known.append(runs.name_of({}))


def test_the_workspace_is_not_touched(project):
    edit(project, "params.yaml", "seed: 0", "seed: 1")
    project.git("add", "params.yaml")
    edit(project, "params.yaml", "seed: 1", "seed: 2")
    (project.folder / "stage.py").unlink()
    before = project.git("status", "--porcelain")
    assert runs.Snapshot.take().values({})["params.yaml"]["seed"] == 2
    assert project.git("status", "--porcelain") == before == "MM params.yaml\n D stage.py"
    assert project.git("stash", "list") == ""


def test_a_snapshot_stays_as_it_was(project):
    snapshot = Snapshot.take()
    edit(project, "params.yaml", "seed: 0", "seed: 1")
    (project.folder / "models/tiny.yaml").unlink()
    assert "seed: 0" in snapshot.texts({"k": 2})["params.yaml"]
    assert "epochs: 2" in snapshot.texts({})["models/tiny.yaml"]
    assert "stage.py" in project.git("ls-tree", "--name-only", snapshot.tree)


@pytest.mark.parametrize(
    "value", [2, 0.25, 1e-5, 1e22, "auto", "1e-3", "no", "null", None, True, [3, 4], {}, "a: b#c", "ü"]
)
def test_texts_say_the_values(project, value):
    snapshot = Snapshot.take()
    text = snapshot.texts({"k": value})["params.yaml"]
    again = YAML(typ="safe", pure=True).load(text)
    assert again == snapshot.values({"k": value})["params.yaml"]
    assert type(again["k"]) is type(value)
    assert again == read_yaml(project.folder / "params.yaml") | {"k": value}


def test_a_workload_that_git_does_not_know_can_be_run(project):
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


def test_files_of_runs(project, tmp_path):
    copies = project.folder / ".dvc/tmp/copies"
    (copies / "0/.git").mkdir(parents=True)
    (copies / "0.in_use").touch()  # as after a power cut: what lies there is no repository

    whole = runs.run({"k": 2})
    assert project.ran() == dict.fromkeys(
        ("cka", "segment", "score", "finetune", "evaluate@finetuned", "benchmark", "report"), 1
    )
    assert runs.known() == [whole]
    assert whole in project.git("for-each-ref", "refs/exps")
    assert [path.name for path in copies.iterdir() if path.suffix in (".log", ".in_use")] == []
    assert runs.run({"k": 2}) == whole

    part = runs.run({"k": 4}, target="finetune")
    assert runs.known() == [whole], "what is not finished is no result"
    assert runs.run({"k": 4}, target=["finetune"]) == part
    assert project.ran()["segment"] == project.ran()["finetune"] == 2
    assert project.ran()["report"] == 1

    assert runs.read(whole, "data/plan.json") == "0.5  1"
    assert runs.read(part, "data/plan.json") == "0.5  2"
    assert "seed: 0 # mine" in runs.read(part, "params.yaml")
    assert runs.checksums(part)["data/plan.json"] != runs.checksums(whole)["data/plan.json"]
    with pytest.raises(RunError, match=f"the experiment {part} has no reports/metrics.json"):
        runs.read(part, "reports/metrics.json")
    with pytest.raises(RunError, match="there is no experiment nobody on HEAD"):
        runs.read("nobody", "params.yaml")

    runs.fetch(part, "data/finetuned", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model"]
    assert (tmp_path / "mine/model").read_text() == "0.5  20"
    for path in ("data/nothing", "data/plan.json"):
        with pytest.raises(RunError, match=f"has no folder {path}"):
            runs.fetch(part, path, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []

    before, plan = project.ran(), runs.checksums(part)["data/plan.json"]
    kept = project.folder / ".dvc/cache/files/md5" / plan[:2] / plan[2:]
    kept.chmod(0o644)
    kept.unlink()  # as `dvc gc` does, which knows nothing of parts
    assert runs.run({"k": 4}, target="finetune") == part
    assert runs.read(part, "data/plan.json") == "0.5  2"
    assert runs.run({"k": 4}, target="finetune") == part
    assert project.ran() - before == {"score": 1}, "DVC takes the rest from its cache"

    project.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "more")
    assert runs.known() == []
    assert runs.known("HEAD~1") == [whole]
    assert runs.read(whole, "data/plan.json", "HEAD~1") == "0.5  1"
