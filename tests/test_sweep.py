"""A sweep computes nothing twice, survives everything, and measures latency alone."""

import re
import shutil
import signal
import time

import psutil
import pytest
from fake_pipeline import FakeProject

from experiments import runs, sweep
from experiments.grid import parse

SHARED = {"cka", "segment", "score", "finetune", "evaluate@finetuned", "benchmark"}


@pytest.fixture(scope="module")
def _project(tmp_path_factory) -> FakeProject:
    return FakeProject(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def project(_project, monkeypatch) -> FakeProject:
    """A project, in which this process stands; tests go on where the one before ended."""
    return entered(_project, monkeypatch)


def entered(project: FakeProject, monkeypatch) -> FakeProject:
    monkeypatch.chdir(project.folder)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    return project


def run_sweep(monkeypatch, *arguments: str) -> int | str:
    """The exit code of a sweep, or its sentence."""
    monkeypatch.setattr("sys.argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as stop:
        sweep.main()
    return stop.value.code


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition) -> None:
    """Wait until it holds; the machine may be busy, so that this is long."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(process, project, before: int) -> bool:
    """Whether a sweep tunes a network by now."""
    assert process.poll() is None, process.stderr.read()
    return bool(project.ran(since=before)["finetune"])


def nothing_runs(project) -> None:
    """What a sweep ran last ends with it."""
    busy = int(project.lines()[-1].split()[2])
    until(lambda: not alive(busy))


def names(*grid: str) -> list[str]:
    return [runs.name_of(dials) for dials in parse(grid)]


def test_points_with_the_same_plan_share_all_but_the_report(project, monkeypatch, capsys):
    params = project.folder / "params.yaml"
    edited = params.read_text().replace("prune_ratio: 0.5", "prune_ratio: 0.4 # mine")
    params.write_text(edited)
    status = project.git("status", "--short"), project.git("rev-parse", "--abbrev-ref", "HEAD")

    assert run_sweep(monkeypatch, "k=2,3", "method=sglp,tail") == 0

    every = {"cka": 1, "segment": 2, "score": 4, "finetune": 1, "evaluate@finetuned": 1, "benchmark": 1, "report": 4}
    assert project.ran() == project.ran("end") == every
    assert re.search(r"^ +1  distinct plans$", capsys.readouterr().out, re.MULTILINE)
    assert "prune_ratio: 0.4 # mine" in runs.read(names("k=2", "method=tail")[0], "params.yaml")
    assert params.read_text() == edited
    assert (project.git("status", "--short"), project.git("rev-parse", "--abbrev-ref", "HEAD")) == status
    assert project.git("stash", "list") == ""


def test_known_points_are_skipped(project, monkeypatch, capsys):
    before = len(project.lines())
    assert run_sweep(monkeypatch, "method=tail,sglp", "k=3,2") == 0
    assert project.ran(since=before) == {}
    assert re.search(r"^ +4  known before$", capsys.readouterr().out, re.MULTILINE)


def test_a_failed_point_stops_no_other_one(project, monkeypatch, capsys):
    before = len(project.lines())
    assert run_sweep(monkeypatch, "k=7,8,4", "method=sglp") == 1
    printed = capsys.readouterr().out
    assert re.search(r"^k=7-method=sglp-\w+ failed: score: k=7 is one too many$", printed, re.MULTILINE)
    assert re.search(
        r"^k=8-method=sglp-\w+ failed: score: ValueError: eight \(see .*k=8-\S+\.log\)$", printed, re.MULTILINE
    )
    assert project.ran("end", before) == {"segment": 3, **dict.fromkeys(SHARED - {"cka", "segment"}, 1), "report": 1}
    assert names("k=4", "method=sglp")[0] in runs.known()


def test_killed_at_work_it_goes_on_where_it_was(project, monkeypatch):
    before = len(project.lines())
    hold = project.notes.with_name("hold")
    hold.touch()
    process = project.start("k=2,4", "seed=1")
    until(lambda: at_work(process, project, before))
    assert run_sweep(monkeypatch, "k=5").startswith("another sweep is running")
    process.kill()
    process.communicate()
    nothing_runs(project)
    hold.unlink()
    assert run_sweep(monkeypatch, "k=2,4", "seed=1") == 0
    once = {"cka": 1, "segment": 2, "score": 2, "evaluate@finetuned": 2, "benchmark": 2, "report": 2}
    assert project.ran("end", before) == once | {"finetune": 2}
    assert project.ran(since=before) == once | {"finetune": 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_it_at_once(project, workers):
    before = len(project.lines())
    hold = project.notes.with_name("hold")
    hold.touch()
    process = project.start("k=2,4", f"seed={10 + workers}", "--workers", str(workers))
    until(lambda: at_work(process, project, before))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    nothing_runs(project)
    hold.unlink()


def test_points_that_ask_the_same_are_one(project):
    other = project.folder / "models/other.yaml"
    other.write_text((project.folder / "models/tiny.yaml").read_text())
    found = sweep._points(["model=tiny,other", "models/other.yaml:finetune.epochs=1,2"], runs.Snapshot.take())
    assert [point["model"] for point in found.values()].count("tiny") == 1
    assert [point["models/other.yaml:finetune.epochs"] for point in found.values()] == [1, 1, 2]
    other.unlink()


def test_what_the_cache_has_lost_is_made_again(project, monkeypatch, capsys):
    assert run_sweep(monkeypatch, "k=2", "method=tail") == 0
    shutil.rmtree(project.folder / ".dvc/cache/files")
    before = len(project.lines())
    capsys.readouterr()
    assert run_sweep(monkeypatch, "k=2", "method=tail") == 0
    assert project.ran(since=before)["finetune"] == 1
    assert re.search(r"^ +0  known before$", capsys.readouterr().out, re.MULTILINE)
    assert runs.is_whole(names("k=2", "method=tail")[0], runs.Snapshot.take())


def test_two_workers_find_the_same_and_time_alone(project, monkeypatch, tmp_path):
    serial = {name: runs.checksums(name) for name in names("k=2..4", "method=sglp")}
    edited = (project.folder / "params.yaml").read_text()
    other = entered(FakeProject(tmp_path), monkeypatch)
    (other.folder / "params.yaml").write_text(edited)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("SECONDS", "3")  # of fine-tuning: both workers are at it when they should not be

    assert run_sweep(monkeypatch, "k=2..4,7", "method=sglp", "--workers", "2") == 1

    assert runs.known() == sorted(serial)
    for name in serial:
        assert _but_timed(runs.checksums(name)) == _but_timed(serial[name])
    every = {"cka": 1, "segment": 4, "score": 4, "finetune": 2, "evaluate@finetuned": 2, "benchmark": 2, "report": 3}
    assert other.ran() == every
    events = [line.split() for line in other.lines()]
    assert {gpu for _, stage, _, gpu in events if stage == "segment"} == {"3", "5"}
    assert {gpu for _, stage, _, gpu in events if stage == "benchmark"} == {"3"}, "one of them"
    first = next(i for i, event in enumerate(events) if event[1] == "benchmark")
    assert {event[1] for event in events[first:]} == {"benchmark", "report"}
    assert [event[0] for event in events[first:]] == ["begin", "end"] * 5


def test_what_is_not_begun_does_not_begin_after_an_error(monkeypatch):
    points = {f"k={k}-{k:010}": {"k": k} for k in range(40)}
    began = []

    class Schedule:
        steps = ("one", "two")

        def __init__(self, snapshot, points):
            pass

        def question(self, name, step):
            return f"{name} {step}"

        def targets(self, step):
            return [step]

        def arrived(self, name, step, checksums):
            return checksums

    def run(dials, target, snapshot, environment):
        began.append(dials["k"])
        time.sleep(0.05)
        if dials["k"] == 1:
            raise OSError("disk full")

    monkeypatch.setattr(sweep, "Lanes", Schedule)
    monkeypatch.setattr(sweep.runs, "run", run)
    monkeypatch.setattr(sweep.runs, "checksums", lambda name, baseline: {})
    with pytest.raises(OSError, match="disk full"):
        list(sweep.side_by_side(points, runs.Snapshot("root", "commit", "tree"), 2))
    count = len(began)
    assert count < 20
    time.sleep(0.3)
    assert len(began) == count


def test_targets_of_latency_are_timed_alone(project):
    snapshot = runs.Snapshot.take()
    assert sweep._times({"target": {"latency": 0.5}}, snapshot)
    assert not sweep._times({"target": {"macs": 0.5}}, snapshot)
    assert not sweep._times({"target": None}, snapshot)


def test_workers_without_a_gpu_share_the_cores(monkeypatch):
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert sweep._environments(4) == [{"OMP_NUM_THREADS": "1"}] * 4
    assert sweep._environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert sweep._environments(8) == [{"OMP_NUM_THREADS": "1"}] * 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert sweep._environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sweep._environments(2) == [{}, {}]


def _but_timed(checksums: dict[str, str]) -> dict[str, str]:
    return {
        path: value
        for path, value in checksums.items()
        if path not in ("reports/benchmark.json", "reports/metrics.json")
    }


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("k", "'k' is no DIAL=VALUES, as k=2..8 or method=sglp,tail"),
        ("k=2,,3", "k has an empty value between its commas; null is written null"),
        ("k=8..2", "k=8..2 holds no number: the first is larger than the last"),
        ("k=2 k=3", "k stands twice: write its values after one another, as k=1,2"),
        ("k=[2", "k: '[2' is no value in YAML"),
        ("kk=2", "params.yaml: kk is no key; it can be one of model, k,"),
        ("seed.a=2", "params.yaml: seed.a is no key"),
        ("k=2,three", "params.yaml: k='three' is wrong: input should be a valid integer or input should be 'auto'"),
        ("prune_ratio=0.1,1.5", "params.yaml: prune_ratio=1.5 is wrong: input should be less than 1"),
        ('target={"macs":0.5} prune_ratio=0.3', "prune_ratio changes nothing where target={'macs': 0.5}: add target="),
        ("model=tiny,other", "there is no models/other.yaml; workloads in models/ are tiny"),
        ("models/tiny.yaml:finetune.epochs=0", "models/tiny.yaml: finetune.epochs=0 is wrong"),
        ("models/other.yaml:finetune.epochs=1", "there is no models/other.yaml"),
        ("dvc.yaml:stages=1", "dvc.yaml:stages changes nothing: dvc.yaml is neither params.yaml nor the workload"),
    ],
)
def test_a_bad_grid_gets_one_sentence_before_anything_runs(project, monkeypatch, grid, sentence):
    before = len(project.lines())
    said = run_sweep(monkeypatch, "prune_ratio=0.2" if "ratio" not in grid else "k=4", *grid.split())
    assert isinstance(said, str)
    assert said.startswith(sentence)
    assert "\n" not in said
    assert len(project.lines()) == before


def test_values_are_yaml():
    points = parse(["k=auto,2..4", "score.budget=null,[3, 4]", "method=my_nets:a.b", "seed=-1..0"])
    assert len(points) == 4 * 2 * 2
    assert [point["k"] for point in points[::4]] == ["auto", 2, 3, 4]
    assert points[2] == {"k": "auto", "score.budget": [3, 4], "method": "my_nets:a.b", "seed": -1}
