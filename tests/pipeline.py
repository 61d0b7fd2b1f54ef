"""A small project for tests: the pipeline's own files, a tiny network and small parameters."""

import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("sglp", "stages", "tools", "dvc.yaml", "versions.txt", ".dvcignore", ".dvc/config", ".dvc/plots")
TINY_PARAMS = {
    "model": "tiny",
    "prune": {"recalibration_samples": 64},
    "benchmark": {"repeats": 2},
}
TINY_WORKLOAD = {
    "architecture": {"kwargs": {"depth": 20}},
    "calibration": {"samples": 64, "batch_size": 32},
    "scoring": {"batch_size": 16},
    "reconstruction": {"samples": 64, "batch_size": 16},
    "pretrain": {"epochs": 1, "warmup_epochs": 0},
    "finetune": {
        "epochs": 2,
        "augment": [{"RandomCrop": {"size": 8, "padding": 1}}],
        "holdout": 0.1,
        "distillation": 0.5,
    },
    "evaluation": {"robustness": {"samples": 32, "pgd_steps": 2}},
    "benchmark": {"batch_sizes": [1]},
}


def make_project(folder: Path) -> Path:
    """Copy the project's files to a new folder, with the workload `tiny` and parameters to match."""
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / "models").mkdir()
    write_yaml(folder / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), TINY_PARAMS))
    write_yaml(folder / "models/tiny.yaml", merged(read_yaml(ROOT / "models/resnet56-digits.yaml"), TINY_WORKLOAD))
    return folder


def run_module(module: str, *arguments: str) -> None:
    """Run a module as `python -m` does, but in this process: importing torch takes longer than most stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delitem(sys.modules, module, raising=False)  # another test may have imported it
        runpy.run_module(module, run_name="__main__", alter_sys=False)


def complaint(module: str, *arguments: str) -> str:
    """Run a module that must fail and return its error message."""
    with pytest.raises(SystemExit) as stop:
        run_module(module, *arguments)
    assert isinstance(stop.value.code, str), "a message makes the exit code 1"
    assert "\n" not in stop.value.code
    return stop.value.code


def kill_and_run_again(folder: Path, cache: Path, after: int, steps: int) -> None:
    """Run finetune in a folder, kill it when a checkpoint after step `after` is saved, and run it again."""
    command = [sys.executable, "-m", "stages.finetune"]
    process = subprocess.Popen(command, cwd=folder, env=command_environment(cache), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(int(p.parent.name[11:]) > after for p in cache.glob("sglp/resume/*/checkpoint-*/complete")):
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (folder / "data/finetuned").exists()
    saved = [int(path.name.rpartition("-")[2]) for path in cache.glob("sglp/resume/*/checkpoint-*")]
    assert after < max(saved) < steps, "it was killed in the middle"
    run_python(folder, *command[1:], cache=cache)


def run_stages(project: Path, stages: list[str]) -> None:
    """Run stages in the project's folder, the current folder, and check that they wrote their declared outputs."""
    for stage in stages:
        entry = stage_entry(project, stage)
        run_module(*entry["cmd"].split()[2:])
        assert all((project / out_path(out)).exists() for out in entry["outs"])


def run_python(folder: Path, *arguments: str, cache: Path | None = None, check: bool = True):
    """Run this environment's Python in a folder, with a separate user cache."""
    environment = command_environment(cache or folder / ".usercache")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def command_environment(cache: Path) -> dict[str, str]:
    """Return environment variables for commands: this Python is first on the path, and the user cache is separate."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # More threads don't help networks this small, and cost minutes if other programs are running.
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def stage_entry(folder: Path, stage: str) -> dict:
    """Return a stage's entry in dvc.yaml; a name such as "evaluate@dense" selects an item of foreach."""
    name, _, item = stage.partition("@")
    entry = read_yaml(folder / "dvc.yaml")["stages"][name]
    return _replaced(entry.get("do", entry), item)


def _replaced(value, item: str):
    if isinstance(value, str):
        return value.replace("${item}", item)
    if isinstance(value, list):
        return [_replaced(v, item) for v in value]
    if isinstance(value, dict):
        return {_replaced(k, item): _replaced(v, item) for k, v in value.items()}
    return value


def stage_names(folder: Path) -> list[str]:
    """Return the names of all stages in the order of dvc.yaml, in which they run."""
    stages = read_yaml(folder / "dvc.yaml")["stages"]
    return [f"{n}@{item}" if item else n for n, entry in stages.items() for item in entry.get("foreach", [None])]


def out_path(out) -> str:
    """Return the path of an entry of `outs`, which may have options."""
    return out if isinstance(out, str) else next(iter(out))


def isolated(project: Path, stage: str, folder: Path) -> Path:
    """Create a folder with only the declared inputs of a stage; parameter files have only the listed keys."""
    entry = stage_entry(project, stage)
    for dependency in entry["deps"]:
        copy(project / dependency, folder / dependency)
    copy(project / "dvc.yaml", folder / "dvc.yaml")
    params = read_yaml(project / "params.yaml")
    own = [key for key in entry.get("params", []) if isinstance(key, str)]
    write_yaml(folder / "params.yaml", _only(params, own))
    for item in entry.get("params", []):
        if isinstance(item, dict):
            ((path, keys),) = item.items()
            path = path.replace("${model}", params["model"])
            # The path of a user's file is not a parameter: stages read it without depending on it.
            names = {key.split(".")[1] for key in keys if key.startswith("files.")}
            write_yaml(folder / path, _only(read_yaml(project / path), [*keys, *(f"files.{n}.path" for n in names)]))
    return folder


def run_isolated(project: Path, stage: str, folder: Path, check: bool = True):
    """Run a stage in a folder with only its declared inputs."""
    isolated(project, stage, folder)
    command = stage_entry(project, stage)["cmd"].split()
    return run_python(folder, *command[1:], cache=folder.parent / "cache", check=check)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder and create its parents."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def _only(content: dict, keys: list[str]) -> dict:
    picked: dict = {}
    for key in keys:
        *parents, last = key.split(".")
        source, target = content, picked
        for part in parents:
            source, target = source[part], target.setdefault(part, {})
        target[last] = source[last]
    return picked


def merged(base: dict, changes: dict) -> dict:
    """Return `base` with `changes` applied, recursively."""
    return {
        key: merged(value, changes[key])
        if isinstance(value, dict) and isinstance(changes.get(key), dict)
        else changes.get(key, value)
        for key, value in base.items()
    }


def read_yaml(path: Path) -> dict:
    """Read YAML 1.2."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def write_yaml(path: Path, content: dict) -> None:
    """Write YAML in block style."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    yaml.default_flow_style = False
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
