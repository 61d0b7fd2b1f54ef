"""What DVC adds to the work of the stages: its command against the stages' own, one after the other."""

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
AFTER_K = ("segment", "score", "prune", "finetune", "evaluate pruned", "evaluate finetuned", "benchmark", "report")
WORKLOAD = "resnet20-digits"
SMALL = {
    "pretrain.epochs": 2,
    "pretrain.warmup_epochs": 0,
    "finetune.epochs": 2,
    "evaluation.robustness": None,
}


def measure(small: bool) -> list[Row]:
    """One stage, a pipeline where nothing has changed, and all that a new k runs, of a small workload."""
    rounds = 1 if small else ROUNDS
    with _project() as folder:
        if small:
            _write_similarity(folder)
        else:
            _run(folder, "dvc", "repro")
        rows = [_segment(folder, rounds)]
        return rows if small else [*rows, _nothing(folder, rounds), _all_that_follows(folder, rounds)]


def _segment(folder: Path, rounds: int) -> Row:
    segments = folder / "data/segments.json"

    def ours() -> str:
        _run(folder, "dvc", "repro", "--single-item", "--force", "segment")
        return segments.read_text(encoding="utf-8")

    def plain() -> str:
        _run(folder, "python", "-m", "stages.segment")
        return segments.read_text(encoding="utf-8")

    if ours() != plain():
        raise AssertionError("the stage wrote something else under DVC")
    return Row("`dvc repro --single-item --force segment`", "`python -m stages.segment`", in_turn(ours, plain, rounds))


def _nothing(folder: Path, rounds: int) -> Row:
    timing = in_turn(lambda: _run(folder, "dvc", "repro"), lambda: _run(folder, "dvc", "--version"), rounds)
    return Row("`dvc repro` where nothing has changed", "`dvc --version`", timing)


def _all_that_follows(folder: Path, rounds: int) -> Row:
    def plain() -> None:
        for stage in AFTER_K:
            _run(folder, "python", "-m", *f"stages.{stage}".split())

    ours = ["dvc", "repro", "--force", "--downstream", "segment"]
    timing = in_turn(lambda: _run(folder, *ours), plain, rounds)
    return Row("all that a new k runs, by `dvc repro`", "the same stages by a script", timing)


@contextmanager
def _project() -> Iterator[Path]:
    """The project's files in a folder of its own, with a workload that is through in moments."""
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
    """What the stages before `segment` would have left: the layers of a ResNet-20, alike by nearness."""
    from stages.support.tables import write_similarity

    near = np.subtract.outer(np.arange(10), np.arange(10))
    (folder / "data").mkdir()
    write_similarity(folder / "data/similarity.csv", np.exp(-np.abs(near) / 3))


def _run(folder: Path, program: str, *arguments: str) -> None:
    """Run a program of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment, command = os.environ | {"PATH": path}, [program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
