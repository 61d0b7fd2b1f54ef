"""Chains of runs: in rounds, in search of how much to prune, from one data set to another."""

import csv
import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
from pipeline import ROOT, copy, make_project, merged, read_yaml, run_stages, stage_names, write_yaml

from experiments import chain, how_much, rounds, runs, transfer
from experiments.git import RunError
from experiments.grid import check
from experiments.snapshot import Snapshot
from sglp.budget import layers_to_keep
from stages.support.userfiles import checksum

FREE = 5


def commit(project: Path) -> None:
    (project / ".gitignore").write_text("__pycache__/\n/data/\n/reports/\n/stages that ran\n")
    (project / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    name = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*name, "commit", "-q", "-m", "code"]):
        subprocess.run(["git", *command], cwd=project, check=True)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The tiny project, with a second workload, in which this process stands."""
    folder = make_project(tmp_path / "project")
    copy(folder / "models/tiny.yaml", folder / "models/other.yaml")
    commit(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


class Fake:
    """In the place of runs: notes what was asked, and answers from what it is given."""

    def __init__(self, monkeypatch, answer=None):
        self.asked, self.answer = [], answer or (lambda dials, path: "")
        for name in ("run", "read", "fetch", "checksums"):
            monkeypatch.setattr(runs, name, getattr(self, name))

    def run(self, dials, *, target=None, snapshot=None):
        self.asked.append((dials, target))
        return f"run{len(self.asked) - 1}"

    def read(self, name, path, baseline):
        dials, _ = self.asked[int(name[3:])]
        if path == "data/layers.csv":
            rows = [f"b{i},{0 < i <= FREE},reason,1,1" for i in range(FREE + 2)]
            return "\n".join(["name,removable,reason,parameters,macs", *rows])
        return "[[0, 2], [3, 6]]" if path == "data/segments.json" else self.answer(dials, path)

    def checksums(self, name, baseline):
        return {f"data/{which}": f"{name}{which}.dir" for which in ("dense", "finetuned")}

    def fetch(self, name, path, folder, baseline):
        folder.mkdir(parents=True)
        (folder / "architecture.json").write_text(json.dumps({"fetched": f"{name} {path}"}))


# --- how many layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [1, 2, 3, 7, 28, 300, 1000])
def test_the_ratio_removes_just_so_many_layers(free):
    for layers in range(free + 1):
        ratio = chain.prune_ratio(layers, free)
        assert 0 <= ratio < 1
        assert free + 4 - layers_to_keep([True] * free + [False] * 4, ratio) == layers
    with pytest.raises(RunError, match=f"{free + 1} layers can't go: {free} layers"):
        chain.prune_ratio(free + 1, free)


def test_what_can_go_is_counted_in_segments(monkeypatch):
    fake = Fake(monkeypatch)
    fake.run({})
    # Of b0 to b2 two can go, of b3 to b6 three: b0 and b6 stay anyway.
    assert chain.removable("run0", Snapshot(Path(), "", "")) == (5, 5)
    monkeypatch.setattr(fake, "read", None)
    table = {"data/layers.csv": "name,removable\na,True\nb,True\nc,False\n", "data/segments.json": "[[0, 1], [2, 2]]"}
    monkeypatch.setattr(runs, "read", lambda name, path, baseline: table[path])
    assert chain.removable("run0", Snapshot(Path(), "", "")) == (2, 1), "a segment keeps a layer at least"


# --- the search -------------------------------------------------------------------------------------------------------


def measured(curve):
    """A loss for the search, and the cuts that it is asked for."""
    asked = []
    return lambda cut: asked.append(cut) or curve[cut], asked


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 28])
def test_the_search_finds_the_deepest_cut_where_the_loss_grows(most):
    for limit in range(most + 1):
        curve = [0.0 if cut <= limit else 1.0 + cut for cut in range(most + 1)]
        loss, asked = measured(curve)
        deepest, losses = how_much.search(loss, most, 0.5)
        assert deepest == limit
        assert list(losses.items()) == [(cut, curve[cut]) for cut in sorted(asked)]
        assert len(asked) <= how_much.COARSE + 1 + max(1, most).bit_length()


def test_the_search_claims_no_more_than_it_measured():
    for curve in itertools.product([0.0, 1.0], repeat=8):
        loss, asked = measured([0.3, *curve])
        deepest, losses = how_much.search(loss, 8, 0.2)
        assert deepest == max(cut for cut, value in losses.items() if value <= 0.5)
        assert deepest == 8 or losses[deepest + 1] > 0.5, "one more layer was tried"
        assert {0, 2, 4, 6, 8} <= set(asked)
        assert len(asked) == len(losses), "no cut is measured twice"


def test_how_much_asks_for_healing_alone_on_samples_that_nobody_saw(project, monkeypatch, capsys):
    def training(dials, path):
        assert path == "reports/training.csv"
        gone = round(dials["prune_ratio"] * FREE)
        return f"step,heldout_loss\n1,9.0\n2,{0.5 + 0.03 * gone**2}\n"

    fake = Fake(monkeypatch, training)
    how_much.main(["method=tail", "models/tiny.yaml:finetune.holdout=0.0", "seed=3"], 0.3)
    targets = {target for _, target in fake.asked}
    assert targets == {"segment", "finetune"}, "the test split is read by none of these"
    for dials, _ in fake.asked:
        workload = {key.partition(":")[2]: value for key, value in dials.items() if ":" in key}
        assert workload == {
            "finetune.holdout": 0.1,
            "finetune.keep": "last",
            "pretrain.holdout": 0.1,
            "pretrain.keep": "last",
            "pretrain.seed": 3,
        }
    assert "3 of 5 removable layers can go (prune_ratio=0.6)" in capsys.readouterr().out
    rows = list(csv.DictReader((project / "reports/how_much.csv").read_text().splitlines()))
    within = [(row["removed_layers"], row["within"]) for row in rows]
    assert within == [("0", "1"), ("1", "1"), ("2", "1"), ("3", "1"), ("4", "0"), ("5", "0")]
    html = (project / "reports/how_much.html").read_text()
    assert how_much.UNSEEN in html
    assert not re.search(r'(?:src|href)="(?!data:)', html), "the page stands alone"


def test_a_network_that_came_along_may_have_seen_all(project, monkeypatch):
    Fake(monkeypatch)
    write_yaml(
        project / "models/tiny.yaml",
        merged(read_yaml(project / "models/tiny.yaml"), {"weights": {"source": "file", "train": True}}),
    )
    dials, unseen = how_much.held_out({}, Snapshot.take())
    assert not unseen
    assert dials == {"models/tiny.yaml:finetune.holdout": 0.1, "models/tiny.yaml:finetune.keep": "last"}


# --- starting from a network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50-imagenet", "llama-tiny"])
def test_a_start_is_a_valid_workload_without_what_the_folder_brings(project, tmp_path, name):
    copy(ROOT / f"models/{name}.yaml", project / f"models/{name}.yaml")
    snapshot = Snapshot.take()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/architecture.json").write_text("{}")
    dials = chain.start_from(tmp_path / "saved", name, snapshot, train=False) | {"model": name}
    check([dials], snapshot, files_too=False)
    _, workload = chain.files(dials, snapshot)
    assert workload["weights"] == {"source": "file", "kwargs": {}, "train": False}
    kwargs = {} if workload["task"] == "causal_lm" else {"num_classes": 1000}
    assert workload["architecture"]["kwargs"] == kwargs


# --- transfer ---------------------------------------------------------------------------------------------------------


def test_transfer_starts_the_target_from_every_network(project, monkeypatch):
    def metrics(dials, path):
        if path == "reports/metrics/dense.json":
            return json.dumps({"accuracy": 0.5, "macs": 1000, "params": 10})
        return json.dumps({name: {"accuracy": 0.9, "macs": 1000, "params": 10} for name in ("dense", "finetuned")})

    fake = Fake(monkeypatch, metrics)
    dials = ["method=sglp,tail", "prune_ratio=0.25", "models/other.yaml:pretrain.epochs=2"]
    transfer.main("tiny", "other", dials)
    sources = [dials for dials, target in fake.asked if target is None]
    assert sources == [{"method": name, "prune_ratio": 0.25, "model": "tiny"} for name in ("sglp", "tail")]
    targets = [dials for dials, target in fake.asked if target == "evaluate@dense"]
    paths = [dials.pop("models/other.yaml:files.weights.path") for dials in targets]
    origins = [json.loads((project / path / "architecture.json").read_text())["fetched"] for path in paths]
    assert origins == ["run0 data/dense", "run0 data/finetuned", "run3 data/finetuned"]
    sums = [dials.pop("models/other.yaml:files.weights.sha256") for dials in targets]
    assert len(set(sums)) == 3
    assert all(
        dials
        == {
            "model": "other",
            "models/other.yaml:pretrain.epochs": 2,
            "models/other.yaml:weights.source": "file",
            "models/other.yaml:weights.kwargs": {},
            "models/other.yaml:weights.train": True,
        }
        for dials in targets
    )
    rows = list(csv.DictReader((project / "reports/transfer.csv").read_text().splitlines()))
    assert [row["start"] for row in rows] == ["dense", "sglp", "tail"]


@pytest.mark.parametrize(
    ("main", "sentence"),
    [
        (lambda: rounds.main(["prune_ratio=0.5"], 2, 1), "prune_ratio is no dial of rounds"),
        (lambda: rounds.main([], 0, 1), "--rounds 0 --layers 1 is wrong: both must be at least 1"),
        (lambda: rounds.main([], 3, 2), "3 rounds of 2 layers are too many: 5 layers of tiny can be removed"),
        (lambda: rounds.main(["model=tiny,other"], 2, 1), "model=tiny,other is too much for one page"),
        (lambda: rounds.main(["target={macs: 0.5}"], 2, 1), "target={'macs': 0.5} can't be met here"),
        (lambda: rounds.main(["models/tiny.yaml:layers=layer*.*"], 2, 1), "models/tiny.yaml: layers=layer*.* are the"),
        (lambda: how_much.main(["target={macs: 0.5}"], 0.1), "target={'macs': 0.5} can't be met here"),
        (lambda: how_much.main(["k=2,3"], 0.1), "2 questions are too many for one page"),
        (lambda: how_much.main(["prune_ratio=0.1"], 0.1), "prune_ratio is what is searched for"),
        (lambda: how_much.main([], -1.0), "--tolerance -1 is wrong"),
        (lambda: transfer.main("tiny", "other", ["model=tiny"]), "model is no dial here"),
        (lambda: transfer.main("tiny", "another", []), "there is no models/another.yaml; workloads in models/ are"),
        (
            lambda: transfer.main("tiny", "other", ["models/other.yaml:pretrain.epochs=1,2"]),
            "models/other.yaml:pretrain.epochs has several values",
        ),
    ],
)
def test_wrong_questions_are_told_and_write_nothing(project, monkeypatch, main, sentence):
    Fake(monkeypatch)
    with pytest.raises(RunError, match=f"^{re.escape(sentence)}"):
        main()
    assert not (project / "reports").exists()


# --- rounds -----------------------------------------------------------------------------------------------------------

TOY_PIPELINE = """
stages:
  segment:
    cmd: python toy.py segment
    deps: [toy.py]
    params: [model, 'models/${model}.yaml': [weights, files.weights.sha256]]
    outs: [data/layers.csv, data/segments.json]
  report:
    cmd: python toy.py report
    deps: [toy.py, data/layers.csv]
    params: [model, prune_ratio, 'models/${model}.yaml': [weights, files.weights.sha256]]
    outs: [data/finetuned, reports/metrics.json]
"""
TOY = '''
"""Networks that are a list of names. Of those that can go, the first ones do."""

import json, sys
from pathlib import Path
from ruamel.yaml import YAML

def read(path):
    return YAML(typ="safe").load(Path(path).read_text())

here = Path.cwd()
root = here.parents[3]
with (root / "stages that ran").open("a") as log:
    log.write(sys.argv[1] + " ")
params = read("params.yaml")
file = read(f"models/{params['model']}.yaml")["files"]["weights"]
kept, removed = ["stem", *(f"b{i}" for i in range(6))], []
if file["path"]:
    saved = json.loads((root / file["path"] / "architecture.json").read_text())
    kept, removed = saved["kept"], saved["removed"]
Path("data").mkdir(exist_ok=True)
Path("reports").mkdir(exist_ok=True)
if sys.argv[1] == "segment":
    rows = ["name,removable", *(f"{name},{name != 'stem'}" for name in kept)]
    Path("data/layers.csv").write_text("\\n".join(rows))
    Path("data/segments.json").write_text(json.dumps([[0, len(kept) - 1]]))
else:
    gone = round(params["prune_ratio"] * (len(kept) - 1))
    metrics = {"dense": {"accuracy": 1.0, "macs": len(kept), "params": len(kept)}}
    left = {"accuracy": 0.5, "macs": len(kept) - gone, "params": len(kept) - gone}
    removed, kept = removed + kept[1 : 1 + gone], [kept[0], *kept[1 + gone :]]
    saved = {"factory": "toy:toy", "kwargs": {}, "kept": kept, "removed": removed, "shared": {}, "versions": {}}
    Path("data/finetuned").mkdir(exist_ok=True)
    Path("data/finetuned/architecture.json").write_text(json.dumps(saved))
    Path("reports/metrics.json").write_text(json.dumps(metrics | {"pruned": left, "finetuned": left}))
'''
LAST = "removed + kept[len(kept) - gone :], kept[: len(kept) - gone]"


def test_rounds_with_dvc_go_on_where_they_were_killed(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    (folder / "dvc.yaml").write_text(TOY_PIPELINE)
    (folder / "toy.py").write_text(TOY)
    commit(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ran, fetch = folder / "stages that ran", runs.fetch

    def killed(name, path, target, baseline):
        if "finetuned" in path and ran.read_text().count("report") == 2:
            raise KeyboardInterrupt
        fetch(name, path, target, baseline)

    monkeypatch.setattr(runs, "fetch", killed)
    with pytest.raises(KeyboardInterrupt):
        rounds.main([], 2, 2)
    assert not (folder / "reports").exists()
    monkeypatch.setattr(runs, "fetch", fetch)
    rounds.main([], 2, 2)
    assert sorted(ran.read_text().split()) == ["report", "report", "segment", "segment"]
    table = (folder / "reports/rounds.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["removed"] for row in rows] == ["", "b0 b1", "b2 b3"]
    assert [row["layers_left"] for row in rows] == ["7", "5", "3"]
    assert [row["macs"] for row in rows] == ["7", "5", "3"]
    rounds.main([], 2, 2)
    assert len(ran.read_text().split()) == 4, "what is known is not run again"
    assert (folder / "reports/rounds.csv").read_text() == table
    assert not (folder / "data/finetuned").exists(), "the workspace is as it was"
    (folder / "toy.py").write_text(TOY.replace("removed + kept[1 : 1 + gone], [kept[0], *kept[1 + gone :]]", LAST))
    commit(folder)
    rounds.main([], 2, 2)
    rows = list(csv.DictReader((folder / "reports/rounds.csv").read_text().splitlines()))
    assert [row["removed"] for row in rows] == ["", "b4 b5", "b2 b3"], "another commit's networks are others"


class InThisProcess:
    """In the place of runs: the stages themselves, each run in a folder of its own, in this process."""

    def __init__(self, project: Path, monkeypatch):
        self.project, self.monkeypatch = project, monkeypatch
        for name in ("run", "read", "fetch", "checksums"):
            monkeypatch.setattr(runs, name, getattr(self, name))

    def run(self, dials, *, target=None, snapshot=None):
        name = snapshot.name(dials)
        folder, stages = self.place(name), stage_names(ROOT)
        if not folder.exists():
            make_project(folder)
            for path, text in snapshot.texts(dials).items():
                (folder / path).write_text(text)
        stages = stages[: stages.index(target) + 1] if target else stages
        with self.monkeypatch.context() as patch:
            patch.chdir(folder)
            run_stages(folder, stages)
        return name

    def read(self, name, path, baseline):
        return (self.place(name) / path).read_text()

    def checksums(self, name, baseline):
        return {"data/finetuned": checksum(self.place(name) / "data/finetuned")}

    def fetch(self, name, path, folder, baseline):
        copy(self.place(name) / path, folder)

    def place(self, name: str) -> Path:
        return self.project / ".dvc/tmp" / name


def test_two_rounds_of_the_pipeline(project, monkeypatch):
    change = {
        "finetune": {"epochs": 1, "samples": 320},
        "pretrain": {"samples": 640},
        "evaluation": {"robustness": None},
    }
    write_yaml(project / "models/tiny.yaml", merged(read_yaml(project / "models/tiny.yaml"), change))
    place = InThisProcess(project, monkeypatch).place
    rounds.main(["method=tail", "models/tiny.yaml:finetune.distillation=0.0"], 2, 2)
    dense, first, second = csv.DictReader((project / "reports/rounds.csv").read_text().splitlines())
    assert [row["removed"] for row in (dense, first, second)] == ["", "layer3.1 layer3.2", "layer2.1 layer2.2"]
    assert [row["layers_left"] for row in (dense, first, second)] == ["10", "8", "6"]
    before, after = (
        json.loads((place(row["experiment"]) / "reports/metrics.json").read_text()) for row in (first, second)
    )
    assert after["dense"] == before["finetuned"], "a round begins with what the round before ended with"
    tuned, begun = place(first["experiment"]) / "data/finetuned", place(second["experiment"]) / "data/dense"
    for file in ("model.safetensors", "architecture.json"):
        assert (begun / file).read_bytes() == (tuned / file).read_bytes()
    assert float(second["accuracy"]) == after["finetuned"]["accuracy"]
    assert float(second["before_tuning.accuracy"]) == after["pruned"]["accuracy"]
