"""Copies of the project that runs take place in, so that the workspace is never touched.

`dvc exp run --temp` and `--queue` won't do: both stash the workspace's edits, detach HEAD and write the dials into the
workspace's own params.yaml for a moment, and killed in that moment they leave it so. The queue's workers also outlive
who started them, and a run whose worker was killed counts as running for ever. A copy is a git clone that borrows the
project's objects and DVC's cache. It stays for the next run, which then finds most outputs in place.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.git import RunError, git
from experiments.snapshot import Snapshot

CHILD = Path(__file__).with_name("child.py")


@contextmanager
def working_copy(snapshot: Snapshot, parameters: dict[str, str]) -> Iterator[Path]:
    """The first copy that nobody uses, holding the snapshot with these parameter files; outputs lie there from before.

    What was killed may have left anything: the copy is made anew.
    """
    folder = snapshot.root / ".dvc/tmp/copies"
    folder.mkdir(parents=True, exist_ok=True)
    for number in count():
        copy, in_use = folder / str(number), folder / f"{number}.in_use"
        try:
            lock = FileLock(folder / f"{number}.lock").acquire(timeout=0)
        except Timeout:
            continue
        with lock:
            if in_use.exists():
                shutil.rmtree(copy, ignore_errors=True)
            in_use.touch()
            try:
                _fill(copy, snapshot, parameters)
            except RunError:  # git's objects may have been cleaned away
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
    """Run the pipeline in a copy as an experiment; it ends when this process does, in whatever way.

    Args:
        copy: the folder.
        name: of the experiment.
        targets: the last stages, none for all.
        environment: variables besides this process's own.

    Raises:
        RunError: it failed; the message is the stage's own sentence.
    """
    # With the dvc.lock of the run before DVC compares instead of looking everything up, which takes half the time; but
    # that of a longer run would hold later stages that this one has not.
    lock, last = copy / "dvc.lock", copy / ".dvc/tmp" / f"{'+'.join(targets) or 'all'}.lock"
    lock.unlink(missing_ok=True)
    if last.exists():
        shutil.copy(last, lock)
    log = copy.parent / f"{name}.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # stages run its `python`
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
            process.stdin.close()
            process.wait()
    if process.returncode:
        raise RunError(_complaint(log))
    log.unlink()
    last.parent.mkdir(exist_ok=True)
    shutil.copy(lock, last)


def _fill(copy: Path, snapshot: Snapshot, parameters: dict[str, str]) -> None:
    if not copy.exists():
        # DVC commits experiments, and who wants to is in no file that a clone brings.
        who = {key: git(snapshot.root, "config", "--default", "sglp", key) for key in ("user.name", "user.email")}
        config = [part for key, value in who.items() for part in ("--config", f"{key}={value}")]
        git(snapshot.root, "clone", "--quiet", "--shared", "--no-checkout", *config, ".", str(copy))
    git(copy, "checkout", "--quiet", "--force", "--detach", snapshot.baseline)
    git(copy, "read-tree", "--reset", "-u", snapshot.tree)
    for path, text in parameters.items():
        (copy / path).write_text(text, encoding="utf-8")
    git(copy, "add", "--force", *parameters)
    _share_cache(copy, snapshot.root)


def _share_cache(copy: Path, root: Path) -> None:
    """Give a copy the project's own settings of DVC, and the project's cache."""
    from dvc.config import Config

    project = Config(str(root / ".dvc"))
    with Config(str(copy / ".dvc")).edit("local") as local:
        local.update(project.read("local"))
        local["cache"] = local["cache"] | {"dir": str(cache_folder(root))}


def cache_folder(root: Path) -> Path:
    """Where a project's cache is."""
    from dvc.config import Config  # takes half a second, which not everyone needs

    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc/cache").resolve()


def _complaint(log: Path) -> str:
    """Why DVC failed: what the stage said last, else what DVC says."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        found = re.search(r"failed to reproduce '(.+?)': failed to run", line)
        if found and number:
            said = lines[number - 1]
            return said if said.startswith(f"{found[1]}: ") else f"{found[1]}: {said} (see {os.path.relpath(log)})"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"{errors[-1] if errors else 'DVC was stopped'} (see {os.path.relpath(log)})"
