"""Sweeps: nothing is computed twice, kills and failures do no harm, and latency is measured alone."""

import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

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
    """Enter a project that all tests of this file share; each test continues where the previous one ended."""
    return _project.enter(monkeypatch)


def run_sweep(monkeypatch, *arguments: str) -> int | str:
    """Run a sweep in this process and return its exit code or error message."""
    monkeypatch.setattr("sys.argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as stop:
        sweep.main()
    return stop.value.code


def wait_until(condition) -> None:
    """Wait for a condition, for long if the machine is busy."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_and_hold(project, *arguments: str) -> subprocess.Popen:
    """Start a sweep in its own process and wait until it fine-tunes, which it does while the file `hold` exists."""
    before = len(project.lines())
    project.log.with_name("hold").touch()
    process = project.start(*arguments)

    def fine_tunes() -> bool:
        assert process.poll() is None, process.stderr.read()
        return bool(project.ran(since=before)["finetune"])

    wait_until(fine_tunes)
    return process


def release(project) -> None:
    """Wait until the last stage has been killed with its sweep, and let later ones fine-tune."""
    pid = int(project.lines()[-1].split()[2])
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    project.log.with_name("hold").unlink()


def names(*grid: str) -> list[str]:
    return [runs.name_of(params) for params in parse(grid)]


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


def test_a_failed_point_does_not_stop_the_others(project, monkeypatch, capsys):
    before = len(project.lines())
    assert run_sweep(monkeypatch, "k=7,8,4", "method=sglp") == 1
    printed = capsys.readouterr().out
    assert re.search(r"^k=7-method=sglp-\w+ failed: score: k=7 is one too many$", printed, re.MULTILINE)
    assert re.search(
        r"^k=8-method=sglp-\w+ failed: score: ValueError: eight \(see .*k=8-\S+\.log\)$", printed, re.MULTILINE
    )
    assert project.ran("end", before) == {"segment": 3, **dict.fromkeys(SHARED - {"cka", "segment"}, 1), "report": 1}
    assert names("k=4", "method=sglp")[0] in project.finished()


def test_a_killed_sweep_continues_where_it_was(project, monkeypatch):
    before = len(project.lines())
    process = start_and_hold(project, "k=2,4", "seed=1")
    assert run_sweep(monkeypatch, "k=5").startswith("another sweep is running")
    process.kill()
    process.communicate()
    release(project)
    assert run_sweep(monkeypatch, "k=2,4", "seed=1") == 0
    once = {"cka": 1, "segment": 2, "score": 2, "evaluate@finetuned": 2, "benchmark": 2, "report": 2}
    assert project.ran("end", before) == once | {"finetune": 2}
    assert project.ran(since=before) == once | {"finetune": 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_a_sweep_at_once(project, workers):
    process = start_and_hold(project, "k=2,4", f"seed={10 + workers}", "--workers", str(workers))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    release(project)


def test_points_with_the_same_effective_parameters_are_one(project):
    other = project.folder / "models/other.yaml"
    other.write_text((project.folder / "models/tiny.yaml").read_text())
    points = sweep._points(["model=tiny,other", "models/other.yaml:finetune.epochs=1,2"], runs.Snapshot.take())
    assert [point["model"] for point in points.values()].count("tiny") == 1
    assert [point["models/other.yaml:finetune.epochs"] for point in points.values()] == [1, 1, 2]
    other.unlink()


def test_outputs_missing_in_the_cache_are_computed_again(project, monkeypatch, capsys):
    assert run_sweep(monkeypatch, "k=2", "method=tail") == 0
    shutil.rmtree(project.folder / ".dvc/cache/files")
    before = len(project.lines())
    capsys.readouterr()
    assert run_sweep(monkeypatch, "k=2", "method=tail") == 0
    assert project.ran(since=before)["finetune"] == 1
    assert re.search(r"^ +0  known before$", capsys.readouterr().out, re.MULTILINE)
    assert runs.is_whole(names("k=2", "method=tail")[0], runs.Snapshot.take())


def test_two_workers_get_the_same_results_and_measure_latency_alone(project, monkeypatch, tmp_path):
    serial = {name: runs.checksums(name) for name in names("k=2..4", "method=sglp")}
    edited = (project.folder / "params.yaml").read_text()
    other = FakeProject(tmp_path).enter(monkeypatch)
    (other.folder / "params.yaml").write_text(edited)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("SECONDS", "3")  # of fine-tuning, so that work of both workers would overlap

    assert run_sweep(monkeypatch, "k=2..4,7", "method=sglp", "--workers", "2") == 1

    assert other.finished() == sorted(serial)
    for name in serial:
        assert _without_timing(runs.checksums(name)) == _without_timing(serial[name])
    every = {"cka": 1, "segment": 4, "score": 4, "finetune": 2, "evaluate@finetuned": 2, "benchmark": 2, "report": 3}
    assert other.ran() == every
    events = [line.split() for line in other.lines()]
    assert {gpu for _, stage, _, gpu in events if stage == "segment"} == {"3", "5"}
    assert {gpu for _, stage, _, gpu in events if stage == "benchmark"} == {"3"}, "one of them"
    first = next(i for i, event in enumerate(events) if event[1] == "benchmark")
    assert {event[1] for event in events[first:]} == {"benchmark", "report"}
    assert [event[0] for event in events[first:]] == ["begin", "end"] * 5


def test_no_run_starts_after_an_error(monkeypatch):
    points = {f"k={k}-{k:010}": {"k": k} for k in range(40)}
    started = []

    def run(params, target, snapshot, environment):
        started.append(params["k"])
        time.sleep(0.05)
        if params["k"] == 1:
            raise OSError("disk full")

    schedule = SimpleNamespace(
        steps=("one", "two"),
        cache_key=lambda name, step: f"{name} {step}",
        targets=lambda step: [step],
        complete=lambda name, step, checksums: checksums,
    )
    monkeypatch.setattr(sweep, "Schedule", lambda snapshot, points: schedule)
    monkeypatch.setattr(sweep.runs, "run", run)
    monkeypatch.setattr(sweep.runs, "checksums", lambda name, baseline: {})
    with pytest.raises(OSError, match="disk full"):
        list(sweep.side_by_side(points, runs.Snapshot("root", "commit", "tree"), 2))
    count = len(started)
    assert count < 20
    time.sleep(0.3)
    assert len(started) == count


def test_plans_for_a_latency_are_timed_alone(project):
    snapshot = runs.Snapshot.take()
    assert sweep._plan_is_timed({"target": {"latency": 0.5}}, snapshot)
    assert not sweep._plan_is_timed({"target": {"macs": 0.5}}, snapshot)
    assert not sweep._plan_is_timed({"target": None}, snapshot)


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


def _without_timing(checksums: dict[str, str]) -> dict[str, str]:
    timed = ("reports/benchmark.json", "reports/metrics.json")
    return {path: md5 for path, md5 in checksums.items() if path not in timed}


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("k", "'k' is not KEY=VALUES, such as k=2..8 or method=sglp,tail"),
        ("k=2,,3", "k has an empty value between its commas; null is written null"),
        ("k=8..2", "k=8..2 is an empty range: the first number is larger than the last"),
        ("k=2 k=3", "k is given twice: separate its values with commas, as in k=1,2"),
        ("k=[2", "k=[2 is not YAML: "),
        ("kk=2", "params.yaml: kk is not a key; it can be one of model, k,"),
        ("seed.a=2", "params.yaml: seed.a is not a key"),
        ("k=2,three", "params.yaml: k='three' is wrong: it must be a valid integer or 'auto'"),
        ("prune_ratio=0.1,1.5", "params.yaml: prune_ratio=1.5 is wrong: it must be less than 1"),
        ('target={"macs":0.5} prune_ratio=0.3', "prune_ratio has no effect with target={'macs': 0.5}: add target="),
        ("model=tiny,other", "there is no models/other.yaml; workloads in models/ are tiny"),
        ("models/tiny.yaml:finetune.epochs=0", "models/tiny.yaml: finetune.epochs=0 is wrong"),
        ("models/other.yaml:finetune.epochs=1", "there is no models/other.yaml"),
        ("dvc.yaml:stages=1", "dvc.yaml:stages has no effect: dvc.yaml is neither params.yaml nor the workload"),
    ],
)
def test_a_bad_grid_gets_one_sentence_before_anything_runs(project, monkeypatch, grid, sentence):
    before = len(project.lines())
    message = run_sweep(monkeypatch, "prune_ratio=0.2" if "ratio" not in grid else "k=4", *grid.split())
    assert isinstance(message, str)
    assert message.startswith(sentence)
    assert "\n" not in message
    assert len(project.lines()) == before


def test_values_are_yaml():
    points = parse(["k=auto,2..4", "score.budget=null,[3, 4]", "method=my_nets:a.b", "seed=-1..0"])
    assert len(points) == 4 * 2 * 2
    assert [point["k"] for point in points[::4]] == ["auto", 2, 3, 4]
    assert points[2] == {"k": "auto", "score.budget": [3, 4], "method": "my_nets:a.b", "seed": -1}
