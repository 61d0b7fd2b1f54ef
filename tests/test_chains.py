"""Chains of runs: rounds, the search for how much to prune, and transfer to another data set."""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
from fake_pipeline import commit
from pipeline import ROOT, copy, make_project, merged, read_yaml, run_stages, stage_names, write_yaml

from experiments import chain, how_much, rounds, runs, transfer
from experiments.errors import RunError
from experiments.grid import check
from experiments.snapshot import Snapshot
from sglp.budget import layers_to_keep
from stages.support.userfiles import checksum

FREE = 5


def enter(folder: Path, monkeypatch) -> Path:
    """Commit a project's files and make it the working directory."""
    commit(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Enter the tiny project with a second workload."""
    folder = make_project(tmp_path / "project")
    copy(folder / "models/tiny.yaml", folder / "models/other.yaml")
    return enter(folder, monkeypatch)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


class FakeRuns:
    """A replacement for `runs` that logs the requested runs and takes their outputs from a function."""

    def __init__(self, monkeypatch, output=lambda params, path: ""):
        self.requests, self.output = [], output
        for name in ("run", "read", "fetch", "checksums"):
            monkeypatch.setattr(runs, name, getattr(self, name))

    def run(self, params, *, target=None, snapshot=None):
        self.requests.append((params, target))
        return f"run{len(self.requests) - 1}"

    def read(self, name, path, baseline):
        if path == "data/layers.csv":
            return "\n".join(["name,removable", *(f"b{i},{0 < i <= FREE}" for i in range(FREE + 2))])
        return (
            "[[0, 2], [3, 6]]" if path == "data/segments.json" else self.output(self.requests[int(name[3:])][0], path)
        )

    def checksums(self, name, baseline):
        return {f"data/{which}": f"{name}{which}.dir" for which in ("dense", "finetuned")}

    def fetch(self, name, path, folder, baseline):
        folder.mkdir(parents=True)
        (folder / "architecture.json").write_text(json.dumps({"fetched": f"{name} {path}"}))


# --- how many layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [1, 2, 3, 7, 28, 300, 1000])
def test_the_ratio_removes_this_number_of_layers(free):
    for layers in range(free + 1):
        ratio = chain.prune_ratio(layers, free)
        assert 0 <= ratio < 1
        assert free + 4 - layers_to_keep([True] * free + [False] * 4, ratio) == layers
    with pytest.raises(RunError, match=f"{free + 1} layers can't be removed: {free} layers"):
        chain.prune_ratio(free + 1, free)


def test_removable_layers_are_counted_in_segments(monkeypatch):
    FakeRuns(monkeypatch)
    # b0 and b6 can't be removed: of b0 to b2 two can, of b3 to b6 three.
    assert chain.removable("run0", Snapshot(Path(), "", "")) == (5, 5)
    table = {"data/layers.csv": "name,removable\na,True\nb,True\nc,False\n", "data/segments.json": "[[0, 1], [2, 2]]"}
    monkeypatch.setattr(runs, "read", lambda name, path, baseline: table[path])
    assert chain.removable("run0", Snapshot(Path(), "", "")) == (2, 1), "a segment keeps at least one layer"


# --- the search -------------------------------------------------------------------------------------------------------


def measured(curve):
    """Return a loss function for the search, and the list of the cuts that are passed to it."""
    cuts = []
    return lambda cut: cuts.append(cut) or curve[cut], cuts


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 28])
def test_the_search_finds_the_deepest_cut_if_the_loss_grows(most):
    for limit in range(most + 1):
        curve = [0.0 if cut <= limit else 1.0 + cut for cut in range(most + 1)]
        loss, cuts = measured(curve)
        deepest, losses = how_much.search(loss, most, 0.5)
        assert deepest == limit
        assert list(losses.items()) == [(cut, curve[cut]) for cut in sorted(cuts)]
        assert len(cuts) <= how_much.COARSE + 1 + max(1, most).bit_length()


def test_the_search_claims_no_more_than_it_measured():
    for curve in itertools.product([0.0, 1.0], repeat=8):
        loss, cuts = measured([0.3, *curve])
        deepest, losses = how_much.search(loss, 8, 0.2)
        assert deepest == max(cut for cut, value in losses.items() if value <= 0.5)
        assert deepest == 8 or losses[deepest + 1] > 0.5, "one more layer was tried"
        assert {0, 2, 4, 6, 8} <= set(cuts)
        assert len(cuts) == len(losses), "no cut is measured twice"


def test_how_much_runs_healing_only_and_holds_samples_out_of_all_training(project, monkeypatch, capsys):
    def training(params, path):
        assert path == "reports/training.csv"
        num_removed = round(params["prune_ratio"] * FREE)
        return f"step,heldout_loss\n1,9.0\n2,{0.5 + 0.03 * num_removed**2}\n"

    fake = FakeRuns(monkeypatch, training)
    how_much.main(["method=tail", "models/tiny.yaml:finetune.holdout=0.0", "seed=3"], 0.3)
    targets = {target for _, target in fake.requests}
    assert targets == {"segment", "finetune"}, "none of these stages reads the test split"
    for params, _ in fake.requests:
        workload = {key.partition(":")[2]: value for key, value in params.items() if ":" in key}
        assert workload == {
            "finetune.holdout": 0.1,
            "finetune.keep": "last",
            "pretrain.holdout": 0.1,
            "pretrain.keep": "last",
            "pretrain.seed": 3,
        }
    assert "3 of 5 removable layers can be removed (prune_ratio=0.6)" in capsys.readouterr().out
    rows = read_csv(project / "reports/how_much.csv")
    assert [row["removed_layers"] + row["within"] for row in rows] == ["01", "11", "21", "31", "40", "50"]
    html = (project / "reports/how_much.html").read_text()
    assert how_much.UNSEEN in html
    assert not re.search(r'(?:src|href)="(?!data:)', html), "the page is self-contained"


def change_workload(project: Path, changes: dict) -> None:
    path = project / "models/tiny.yaml"
    write_yaml(path, merged(read_yaml(path), changes))


def test_a_loaded_network_may_have_seen_held_out_samples(project, monkeypatch):
    change_workload(project, {"weights": {"source": "file", "train": True}})
    params, unseen = how_much.held_out({}, Snapshot.take())
    assert not unseen
    assert params == {"models/tiny.yaml:finetune.holdout": 0.1, "models/tiny.yaml:finetune.keep": "last"}


# --- starting from a network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50-imagenet", "llama-tiny"])
def test_a_start_is_a_valid_workload_without_the_configuration_in_the_folder(project, tmp_path, name):
    copy(ROOT / f"models/{name}.yaml", project / f"models/{name}.yaml")
    snapshot = Snapshot.take()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/architecture.json").write_text("{}")
    params = chain.start_from(tmp_path / "saved", name, snapshot, train=False) | {"model": name}
    check([params], snapshot, files_too=False)
    _, workload = chain.files(params, snapshot)
    assert workload["weights"] == {"source": "file", "kwargs": {}, "train": False}
    kwargs = {} if workload["task"] == "causal_lm" else {"num_classes": 1000}
    assert workload["architecture"]["kwargs"] == kwargs


# --- transfer ---------------------------------------------------------------------------------------------------------


def test_transfer_starts_the_target_from_every_network(project, monkeypatch):
    def metrics(params, path):
        if path == "reports/metrics/dense.json":
            return json.dumps({"accuracy": 0.5, "macs": 1000, "params": 10})
        return json.dumps({name: {"accuracy": 0.9, "macs": 1000, "params": 10} for name in ("dense", "finetuned")})

    fake = FakeRuns(monkeypatch, metrics)
    transfer.main("tiny", "other", ["method=sglp,tail", "prune_ratio=0.25", "models/other.yaml:pretrain.epochs=2"])
    sources = [params for params, target in fake.requests if target is None]
    assert sources == [{"method": name, "prune_ratio": 0.25, "model": "tiny"} for name in ("sglp", "tail")]
    targets = [params for params, target in fake.requests if target == "evaluate@dense"]
    paths = [params.pop("models/other.yaml:files.weights.path") for params in targets]
    origins = [json.loads((project / path / "architecture.json").read_text())["fetched"] for path in paths]
    assert origins == ["run0 data/dense", "run0 data/finetuned", "run3 data/finetuned"]
    assert len({params.pop("models/other.yaml:files.weights.sha256") for params in targets}) == 3
    weights = {"source": "file", "kwargs": {}, "train": True}
    same = {"model": "other", "models/other.yaml:pretrain.epochs": 2}
    same |= {f"models/other.yaml:weights.{key}": value for key, value in weights.items()}
    assert targets == [same] * 3
    assert [row["start"] for row in read_csv(project / "reports/transfer.csv")] == ["dense", "sglp", "tail"]


@pytest.mark.parametrize(
    ("main", "sentence"),
    [
        (lambda: rounds.main(["prune_ratio=0.5"], 2, 1), "prune_ratio can't be set here: --layers"),
        (lambda: rounds.main([], 0, 1), "--rounds 0 --layers 1 is wrong: both must be at least 1"),
        (lambda: rounds.main([], 3, 2), "3 rounds of 2 layers are too many: 5 layers of tiny can be removed"),
        (lambda: rounds.main(["model=tiny,other"], 2, 1), "model=tiny,other is too much for one page"),
        (lambda: rounds.main(["target={macs: 0.5}"], 2, 1), "target={'macs': 0.5} can't be met here"),
        (
            lambda: rounds.main(["models/tiny.yaml:layers=layer*.*"], 2, 1),
            "models/tiny.yaml: layers=layer*.* are names",
        ),
        (lambda: how_much.main(["target={macs: 0.5}"], 0.1), "target={'macs': 0.5} can't be met here"),
        (lambda: how_much.main(["k=2,3"], 0.1), "2 points are too many for one page"),
        (lambda: how_much.main(["prune_ratio=0.1"], 0.1), "prune_ratio can't be set here: the number"),
        (lambda: how_much.main([], -1.0), "--tolerance -1 is wrong"),
        (lambda: transfer.main("tiny", "other", ["model=tiny"]), "model can't be set here"),
        (lambda: transfer.main("tiny", "another", []), "there is no models/another.yaml; workloads in models/ are"),
        (
            lambda: transfer.main("tiny", "other", ["models/other.yaml:pretrain.epochs=1,2"]),
            "models/other.yaml:pretrain.epochs has several values",
        ),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(project, monkeypatch, main, sentence):
    FakeRuns(monkeypatch)
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
"""Networks as lists of layer names, of which the first removable ones are removed."""

import json, sys
from pathlib import Path
from ruamel.yaml import YAML

def read(path):
    return YAML(typ="safe").load(Path(path).read_text())

here = Path.cwd()
root = here.parents[3]
with (root / "data/ran").open("a") as log:
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
    count = round(params["prune_ratio"] * (len(kept) - 1))
    metrics = {"dense": {"accuracy": 1.0, "macs": len(kept), "params": len(kept)}}
    left = {"accuracy": 0.5, "macs": len(kept) - count, "params": len(kept) - count}
    removed, kept = removed + kept[1 : 1 + count], [kept[0], *kept[1 + count :]]
    saved = {"factory": "toy:toy", "kwargs": {}, "kept": kept, "removed": removed, "shared": {}, "versions": {}}
    Path("data/finetuned").mkdir(exist_ok=True)
    Path("data/finetuned/architecture.json").write_text(json.dumps(saved))
    small = {name: left for name in ("pruned", "reconstructed", "finetuned")}
    Path("reports/metrics.json").write_text(json.dumps(metrics | small))
'''
LAST = "removed + kept[len(kept) - count :], kept[: len(kept) - count]"


@pytest.mark.slow
def test_rounds_with_dvc_continue_where_they_were_killed(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    (folder / "dvc.yaml").write_text(TOY_PIPELINE)
    (folder / "toy.py").write_text(TOY)
    (folder / "data").mkdir()
    enter(folder, monkeypatch)
    ran, fetch = folder / "data/ran", runs.fetch

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
    rows = read_csv(folder / "reports/rounds.csv")
    assert [row["removed"] for row in rows] == ["", "b0 b1", "b2 b3"]
    assert [row["layers_left"] for row in rows] == ["7", "5", "3"]
    assert [row["macs"] for row in rows] == ["7", "5", "3"]
    rounds.main([], 2, 2)
    assert len(ran.read_text().split()) == 4, "known runs are reused"
    assert (folder / "reports/rounds.csv").read_text() == table
    assert not (folder / "data/finetuned").exists(), "the workspace has not changed"
    (folder / "toy.py").write_text(TOY.replace("removed + kept[1 : 1 + count], [kept[0], *kept[1 + count :]]", LAST))
    commit(folder)
    rounds.main([], 2, 2)
    removed = [row["removed"] for row in read_csv(folder / "reports/rounds.csv")]
    assert removed == ["", "b4 b5", "b2 b3"], "another commit has other networks"


class InThisProcess(FakeRuns):
    """A replacement for `runs` that runs the stages in this process, each run in its own folder."""

    def __init__(self, project: Path, monkeypatch):
        super().__init__(monkeypatch)
        self.project, self.monkeypatch = project, monkeypatch

    def run(self, params, *, target=None, snapshot=None):
        name = snapshot.name(params)
        folder, stages = self.folder(name), stage_names(ROOT)
        if not folder.exists():
            make_project(folder)
            for path, text in snapshot.texts(params).items():
                (folder / path).write_text(text)
        with self.monkeypatch.context() as patch:
            patch.chdir(folder)
            run_stages(folder, stages[: stages.index(target) + 1] if target else stages)
        return name

    def read(self, name, path, baseline):
        return (self.folder(name) / path).read_text()

    def checksums(self, name, baseline):
        return {"data/finetuned": checksum(self.folder(name) / "data/finetuned")}

    def fetch(self, name, path, folder, baseline):
        copy(self.folder(name) / path, folder)

    def folder(self, name: str) -> Path:
        return self.project / ".dvc/tmp" / name


def test_two_rounds_of_the_pipeline(project, monkeypatch):
    fewer = {"finetune": {"epochs": 1, "samples": 320}, "pretrain": {"samples": 640}}
    change_workload(project, fewer | {"evaluation": {"robustness": None}})
    folder = InThisProcess(project, monkeypatch).folder
    rounds.main(["method=tail", "models/tiny.yaml:finetune.distillation=0.0"], 2, 2)
    rows = read_csv(project / "reports/rounds.csv")
    assert [row["removed"] for row in rows] == ["", "layer3.1 layer3.2", "layer2.1 layer2.2"]
    assert [row["layers_left"] for row in rows] == ["10", "8", "6"]
    first, second = (folder(row["experiment"]) for row in rows[1:])
    before, after = (json.loads((run / "reports/metrics.json").read_text()) for run in (first, second))
    assert after["dense"] == before["finetuned"], "a round starts from the network of the round before"
    for file in ("model.safetensors", "architecture.json"):
        assert (second / "data/dense" / file).read_bytes() == (first / "data/finetuned" / file).read_bytes()
    assert float(rows[2]["accuracy"]) == after["finetuned"]["accuracy"]
    assert float(rows[2]["before_tuning.accuracy"]) == after["reconstructed"]["accuracy"]
