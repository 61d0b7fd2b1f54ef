"""Copies of the project in which runs take place, so that the workspace does not change.

`dvc exp run --temp` and `--queue` are unsuitable: both stash the workspace's edits, detach HEAD and briefly write the
parameters into the workspace's params.yaml. A kill at that moment leaves the workspace in this state. The queue's
workers also outlive the process that started them, and a run whose worker was killed counts as running forever. A copy
is a git clone that borrows the project's objects and DVC's cache. The next run reuses it with most outputs in place.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.errors import RunError
from experiments.git import git
from experiments.snapshot import Snapshot

CHILD = Path(__file__).with_name("child.py")


@contextmanager
def working_copy(snapshot: Snapshot, parameters: dict[str, str]) -> Iterator[Path]:
    """Provide the first unused copy with the snapshot's files, these parameter files and the last run's outputs.

    A copy in which a run was killed may hold anything, so it is created anew.
    """
    folder = snapshot.root / ".dvc/tmp/copies"
    folder.mkdir(parents=True, exist_ok=True)
    for index in count():
        copy, in_use = folder / str(index), folder / f"{index}.in_use"
        try:
            lock = FileLock(folder / f"{index}.lock").acquire(timeout=0)
        except Timeout:
            continue
        with lock:
            if in_use.exists():
                shutil.rmtree(copy, ignore_errors=True)
            in_use.touch()
            try:
                _fill(copy, snapshot, parameters)
            except RunError:  # 'git gc' may have deleted objects that the copy borrows
                shutil.rmtree(copy, ignore_errors=True)
                _fill(copy, snapshot, parameters)
            try:
                yield copy
            except RunError:
                in_use.unlink()
                raise
            in_use.unlink()
            return


def run_in(copy: Path, name: str, targets: Sequence[str], environment: dict[str, str]) -> None:
    """Run the pipeline in a copy as an experiment, which ends with this process even if this process is killed.

    Args:
        copy: the folder.
        name: the experiment's name.
        targets: the last stages, or none for all stages.
        environment: variables to add to this process's own.

    Raises:
        RunError: the run failed; the message is the stage's own.
    """
    # DVC compares with the dvc.lock of an earlier run instead of looking everything up, which takes half as long. It
    # must be a run with the same targets: the dvc.lock of a longer run lists stages that this run does not have.
    lock, last = copy / "dvc.lock", copy / ".dvc/tmp" / f"{'+'.join(targets) or 'all'}.lock"
    lock.unlink(missing_ok=True)
    if last.exists():
        shutil.copy(last, lock)
    log = copy.parent / f"{name}.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # stages call `python`
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", CHILD, "exp", "run", "--name", name, *targets],
            cwd=copy,
            env=os.environ | environment | {"PATH": path},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait()
        finally:
            process.communicate()  # closes the child's input, which ends it, and waits for the end
    if process.returncode:
        raise RunError(_cause(log))
    log.unlink()
    last.parent.mkdir(exist_ok=True)
    shutil.copy(lock, last)


def cache_folder(root: Path) -> Path:
    """Return the folder of a project's DVC cache."""
    from dvc.config import Config  # takes half a second to import

    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc/cache").resolve()


def _fill(copy: Path, snapshot: Snapshot, parameters: dict[str, str]) -> None:
    """Check out a snapshot with other parameter files in a copy, which shares the project's DVC settings and cache."""
    from dvc.config import Config

    root = snapshot.root
    if not copy.exists():
        # DVC commits experiments, and a clone does not inherit the committer's name and address.
        committer = {key: git(root, "config", "--default", "sglp", key) for key in ("user.name", "user.email")}
        config = [argument for key, value in committer.items() for argument in ("--config", f"{key}={value}")]
        git(root, "clone", "--quiet", "--shared", "--no-checkout", *config, ".", str(copy))
    git(copy, "checkout", "--quiet", "--force", "--detach", snapshot.baseline)
    git(copy, "read-tree", "--reset", "-u", snapshot.tree)
    for path, text in parameters.items():
        (copy / path).write_text(text, encoding="utf-8")
    git(copy, "add", "--force", *parameters)
    with Config(str(copy / ".dvc")).edit("local") as local:
        local.update(Config(str(root / ".dvc")).read("local"))
        local["cache"] = local["cache"] | {"dir": str(cache_folder(root))}


def _cause(log: Path) -> str:
    """Return why DVC failed: the stage's last message, or else DVC's."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for message, line in pairwise(lines):
        if stage := re.search(r"failed to reproduce '(.+?)': failed to run", line):
            is_named = message.startswith(f"{stage[1]}: ")
            return message if is_named else f"{stage[1]}: {message} (see {os.path.relpath(log)})"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"{errors[-1] if errors else 'DVC was stopped'} (see {os.path.relpath(log)})"
