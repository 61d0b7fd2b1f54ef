"""Overhead of DVC: its command against running the stages one after the other."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from benchmarks.side_by_side import Row, in_turn

TITLE = "Pipeline"
ROUNDS = 3
FILES = ("sglp", "stages", "models", "dvc.yaml", "params.yaml", "versions.txt", ".dvcignore")
NETWORKS = ("pruned", "reconstructed", "finetuned")
AFTER_K = (
    *("segment", "score", "prune", "reconstruct", "finetune"),
    *(f"evaluate {network}" for network in NETWORKS),
    *("benchmark", "report"),
)
WORKLOAD = "resnet20-digits"
SMALL = {
    "pretrain.epochs": 2,
    "pretrain.warmup_epochs": 0,
    "finetune.epochs": 2,
    "evaluation.robustness": None,
}


def measure(small: bool) -> list[Row]:
    """Time one stage, an unchanged pipeline, and all stages that a new k reruns, on a small workload."""
    rounds = 1 if small else ROUNDS
    with _project() as folder:
        if small:
            _write_similarity(folder)
        else:
            _run(folder, "dvc", "repro")
        rows = [_segment(folder, rounds)]
        return rows if small else [*rows, _unchanged(folder, rounds), _new_k(folder, rounds)]


def _segment(folder: Path, rounds: int) -> Row:
    segments = folder / "data/segments.json"

    def ours() -> str:
        _run(folder, "dvc", "repro", "--single-item", "--force", "segment")
        return segments.read_text(encoding="utf-8")

    def plain() -> str:
        _run(folder, "python", "-m", "stages.segment")
        return segments.read_text(encoding="utf-8")

    if ours() != plain():
        raise AssertionError("the stage wrote different segments under DVC")
    return Row("`dvc repro --single-item --force segment`", "`python -m stages.segment`", in_turn(ours, plain, rounds))


def _unchanged(folder: Path, rounds: int) -> Row:
    timing = in_turn(lambda: _run(folder, "dvc", "repro"), lambda: _run(folder, "dvc", "--version"), rounds)
    return Row("`dvc repro` when nothing has changed", "`dvc --version`", timing)


def _new_k(folder: Path, rounds: int) -> Row:
    def plain() -> None:
        for stage in AFTER_K:
            _run(folder, "python", "-m", *f"stages.{stage}".split())

    ours = ["dvc", "repro", "--force", "--downstream", "segment"]
    timing = in_turn(lambda: _run(folder, *ours), plain, rounds)
    return Row("all stages that a new k reruns, by `dvc repro`", "the same stages, run by a script", timing)


@contextmanager
def _project() -> Iterator[Path]:
    """Copy the project to a temporary folder, with a workload that runs quickly."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES:
            copy = shutil.copytree if Path(file).is_dir() else shutil.copy
            copy(file, folder / file)
        yaml = YAML()
        params, workload = folder / "params.yaml", folder / f"models/{WORKLOAD}.yaml"
        _change(yaml, params, {"model": WORKLOAD})
        _change(yaml, workload, SMALL)
        _run(folder, "dvc", "init", "--no-scm", "--quiet")
        yield folder


def _change(yaml: YAML, path: Path, changes: dict) -> None:
    content = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *outer, last = key.split(".")
        group = content
        for part in outer:
            group = group[part]
        group[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def _write_similarity(folder: Path) -> None:
    """Write a table in place of the stages before `segment`: a ResNet-20 whose neighbouring layers are similar."""
    from stages.support.matrices import write_similarity

    distances = np.subtract.outer(np.arange(10), np.arange(10))
    (folder / "data").mkdir()
    write_similarity(str(folder / "data/similarity.csv"), np.exp(-np.abs(distances) / 3))


def _run(folder: Path, program: str, *arguments: str) -> None:
    """Run a program of the current environment in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    command = [program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
