"""Several processes give the same results as one, and a process that dies ends the stage."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline import ROOT, command_environment, complaint, isolated, make_project, read_yaml, run_module, write_yaml
from safetensors.torch import load_file

from sglp.distributed import processes
from sglp.distributed.processes import ProcessError
from stages.support import launch

TWO = "torchrun --nproc-per-node 2"
PATIENCE = 300  # seconds, for machines that are busy


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[dict, dict]:
    """The results of one process, and of two."""
    import shared_work

    folder = tmp_path_factory.mktemp("shared")
    command = [*TWO.split(), str(ROOT / "tests/shared_work.py"), str(folder / "two.json")]
    running = start(command, ROOT, folder)
    one = json.loads(json.dumps(shared_work.everything()))
    message = ended(running)
    assert running.returncode == 0, message
    return one, json.loads((folder / "two.json").read_text())


def start(command: list[str], folder: Path, cache: Path, **environment: str) -> subprocess.Popen:
    """Start a command with its own user cache, in a process group that can be killed as a whole."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=command_environment(cache) | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_stage(folder: Path, cache: Path, name: str, launcher: str = TWO) -> subprocess.Popen:
    return start([sys.executable, "-m", f"stages.{name}"], folder, cache, SGLP_LAUNCH=launcher)


def ended(running: subprocess.Popen) -> str:
    """Wait for a command and return its stderr."""
    try:
        return running.communicate(timeout=PATIENCE)[1]
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["map", "few", "first", "calibration", "scores", "evaluation", "perplexity"])
def test_shared_work_gives_the_same_results_bit_for_bit(outputs, name):
    one, two = outputs
    assert one[name] == two[name]


@pytest.mark.parametrize("name", ["resnet", "llama"])
def test_reconstruction_gives_the_same_weights(outputs, name):
    one, two = outputs
    assert one[f"reconstructed {name}: how"] == two[f"reconstructed {name}: how"]
    assert any(kept for _, _, kept in one[f"reconstructed {name}: how"])
    for key in (f"reconstructed {name}", f"reconstructed {name}: errors"):
        # The weights of rows are float32, and so are the errors that they weigh.
        assert numbers(one[key]) == pytest.approx(numbers(two[key]), rel=1e-5, abs=1e-6)


def test_a_users_own_processes_share_nothing(monkeypatch):
    """A user's processes may call the library out of step, so they must not wait for each other."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda *_: pytest.fail("waited for other processes"))
    assert processes.shared_map(lambda item: item**2, range(5)) == [0, 1, 4, 9, 16]
    assert (processes.count(), processes.rank()) == (1, 0)


@pytest.mark.parametrize("name", ["norm 5", "norm 1", "norm without bias"])
def test_batch_norm_uses_the_whole_batch_forward_and_backward(outputs, name):
    one, two = (numbers(found[name]) for found in outputs)
    assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "error"), [("images", 1e-10), ("texts", 1e-4)])
def test_training_takes_the_same_steps(outputs, name, error):
    one, two = outputs
    assert numbers(one[f"{name}: weights"]) == pytest.approx(numbers(two[f"{name}: weights"]), rel=error, abs=error)
    # The Trainer sums losses in float32.
    assert numbers(one[f"{name}: rows"]) == pytest.approx(numbers(two[f"{name}: rows"]), rel=1e-5)


def test_a_folder_is_reconstructed_by_all_processes_and_written_by_one(outputs):
    one, two = (found["reconstructed folder"] for found in outputs)
    assert any(kept for _, _, kept in one[1])
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-6, abs=1e-9)


def numbers(content) -> list[float]:
    return [n for part in content for n in numbers(part)] if isinstance(content, list) else [content]


def test_two_machines_extract_what_one_process_does(finished, tmp_path):
    folder = isolated(finished, "extract", tmp_path / "extract")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = f"torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port}"
    agents = [start_stage(folder, tmp_path / "cache", "extract", two) for _ in range(2)]
    message = [ended(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], message
    files = sorted(path.relative_to(finished) for path in finished.glob("data/grams/*"))
    assert files == sorted(path.relative_to(folder) for path in folder.glob("data/grams/*"))
    assert all((folder / file).read_bytes() == (finished / file).read_bytes() for file in files)
    assert (folder / "data/layers.csv").read_bytes() == (finished / "data/layers.csv").read_bytes()
    assert not list(folder.glob("data/.*"))


def kill_one_of_two(folder: Path, cache: Path) -> None:
    """Run finetune in two processes and kill the second after its first checkpoint."""
    running = start_stage(folder, cache, "finetune")
    deadline = time.monotonic() + PATIENCE
    try:
        while not list(cache.glob("sglp/resume/*/checkpoint-*/complete")):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (mark,) = cache.glob("sglp/launched/*/1")
        who = mark.read_text()
        os.kill(int(re.search(r"pid (\d+)", who)[1]), signal.SIGKILL)
    finally:
        message = ended(running)
    assert running.returncode == 1
    assert message.splitlines()[-1].startswith(f"finetune: {who} died without an error message")
    assert not list(folder.glob("data/*finetuned*"))
    assert not list(folder.glob("data/.*"))
    assert not list(cache.glob("sglp/launched/*"))


def test_a_killed_process_ends_the_stage_and_a_single_process_resumes(finished, tmp_path):
    folder, cache = isolated(finished, "finetune", tmp_path / "finetune"), tmp_path / "cache"
    kill_one_of_two(folder, cache)
    for file in cache.glob("sglp/resume/*/checkpoint-*/trainer_state.json"):
        state = json.loads(file.read_text())
        state["log_history"][0]["loss"] = 7.0
        file.write_text(json.dumps(state))
    running = start_stage(folder, cache, "finetune", launcher="")
    message = ended(running)
    assert running.returncode == 0, message
    rows = log(folder)
    assert rows[0][2] == 7.0, "it resumed"
    expected = log(finished)
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert rows[-1][2] == pytest.approx(expected[-1][2], rel=0.05)


def log(folder: Path) -> list[list[float]]:
    _, *rows = (folder / "reports/training.csv").read_text().splitlines()
    return [[float(cell) for cell in row.split(",")] for row in rows]


def test_the_first_failure_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("SGLP_LAUNCH_MARKS", str(tmp_path))
    for sentence in ("score: this is wrong", "score: and so is that"):
        with pytest.raises(SystemExit) as stop:
            launch.end(sentence)
        assert stop.value.code == 1
    assert launch._failure("score", tmp_path, 1) == "score: this is wrong"


def test_a_missing_launcher_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setenv("SGLP_LAUNCH", "torchrum --nproc-per-node 2")
    message = complaint("stages.extract")
    assert message.endswith(
        "SGLP_LAUNCH='torchrum --nproc-per-node 2': there is no command torchrum; use a launcher such as 'torchrun "
        "--nproc-per-node 2'"
    )


def test_other_stages_ignore_the_launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setenv("SGLP_LAUNCH", "torchrum")
    with pytest.raises(FileNotFoundError, match=r"data/similarity\.csv"):
        run_module("stages.segment")


def test_a_launcher_that_sets_no_rank_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ProcessError, match=r"the launcher started a single process .* use torchrun"),
        processes.joined(),
    ):
        pass


@pytest.mark.slow
def test_every_shared_stage_does_the_same_in_two_processes(finished, tmp_path):
    outs = {}
    for name in ("pretrain", "extract", "score", "reconstruct", "finetune"):
        outs[name] = isolated(finished, name, tmp_path / name)
        running = start_stage(outs[name], tmp_path / "cache", name)
        message = ended(running)
        assert running.returncode == 0, message
    for name, file in [("extract", "data/grams/0001.safetensors"), ("score", "data/plan.json")]:
        assert (outs[name] / file).read_bytes() == (finished / file).read_bytes()
    assert (outs["score"] / "data/scores.csv").read_bytes() == (finished / "data/scores.csv").read_bytes()
    passes = [json.loads((f / "reports/scoring.json").read_text())["forward_passes"] for f in (outs["score"], finished)]
    assert passes[1] <= passes[0] <= 2 * passes[1]
    first, expected = log(outs["finetune"])[0], log(finished)[0]
    assert first == pytest.approx(expected, rel=1e-5)
    assert log(outs["finetune"])[-1][2] == pytest.approx(log(finished)[-1][2], rel=0.05)
    states = [load_file(folder / "data/dense/model.safetensors") for folder in (outs["pretrain"], finished)]
    assert states[0].keys() == states[1].keys()


@pytest.mark.slow
def test_two_resumed_processes_reach_the_same_weights(finished, tmp_path):
    killed, whole = (isolated(finished, "finetune", tmp_path / name) for name in ("killed", "whole"))
    kill_one_of_two(killed, tmp_path / "cache")
    for folder in (killed, whole):
        running = start_stage(folder, tmp_path / "cache", "finetune")
        message = ended(running)
        assert running.returncode == 0, message
    for out in ("data/finetuned/model.safetensors", "reports/training.csv"):
        assert (killed / out).read_bytes() == (whole / out).read_bytes()


@pytest.mark.slow
def test_an_error_of_several_processes_is_reported_once(tmp_path):
    make_project(tmp_path / "project")
    workload = read_yaml(tmp_path / "project/models/tiny.yaml")
    workload["data"]["prepare"]["classes"] = 9
    write_yaml(tmp_path / "project/models/tiny.yaml", workload)
    running = start_stage(tmp_path / "project", tmp_path / "cache", "pretrain")
    message = ended(running)
    assert running.returncode == 1
    sentence = "pretrain: sglp.tasks.digits:Digits has the label 9, but data.prepare.classes=9 allows 0 to 8"
    assert message.splitlines()[-1] == sentence
    assert message.count(sentence) == 1


@pytest.mark.slow
def test_no_process_survives_when_the_stages_group_is_killed(finished, tmp_path):
    folder, cache = isolated(finished, "finetune", tmp_path / "finetune"), tmp_path / "cache"
    running = start_stage(folder, cache, "finetune")
    deadline = time.monotonic() + PATIENCE
    while not list(cache.glob("sglp/resume/*/checkpoint-*/complete")):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pids = [int(re.search(r"pid (\d+)", mark.read_text())[1]) for mark in cache.glob("sglp/launched/*/?")]
    assert len(pids) == 2
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=PATIENCE)
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (folder / "data/finetuned").exists()
