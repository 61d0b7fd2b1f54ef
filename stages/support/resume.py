"""Checkpoints of killed runs, in the user's cache under a key of everything that the stage depends on.

They are outside the workspace, because DVC deletes a stage's outputs before it runs. They are deleted when the stage
succeeds, or when no run has resumed from them for a month.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from stages.support.params import DeclaredParams, entry, flat
from stages.support.userfiles import checksum

ABANDONED = 30 * 24 * 3600  # seconds


@contextmanager
def resumable(stage: str, params: DeclaredParams, workload: DeclaredParams) -> Iterator[Path]:
    """Provide a folder for the checkpoints of a run: the same folder for the same code, inputs and parameters.

    Only one run at a time uses it: a second run with the same key waits for the first.
    """
    inputs = {path: checksum(Path(path)) for path in entry(stage)["deps"]}
    content = json.dumps([stage, inputs, flat(params), flat(workload)], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    folder = user_cache_path("sglp") / "resume" / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    _delete_abandoned(folder.parent)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def _delete_abandoned(folder: Path) -> None:
    """Delete the checkpoints and locks of runs that were not resumed in time, unless a run holds the lock."""
    for path in {file.with_suffix("") for file in folder.iterdir()}:
        lock = path.with_suffix(".lock")
        with suppress(Timeout, FileNotFoundError):  # another run may be deleting the same files
            if time.time() - (path if path.exists() else lock).stat().st_mtime > ABANDONED:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
                    lock.unlink()
