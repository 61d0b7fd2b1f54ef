"""Where a killed run's checkpoints live: outside the workspace, which DVC empties, under a key of all that the stage
depends on; they go when the stage succeeds, or when nobody went on with them for a month."""

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
    """A folder for the checkpoints of one run: the same one for the same code, inputs and parameters.

    A second run of the same waits for the first, as two workers on a cold cache would write into each other's.
    """
    inputs = {path: checksum(Path(path)) for path in entry(stage)["deps"]}
    content = json.dumps([stage, inputs, flat(params), flat(workload)], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    folder = user_cache_path("sglp") / "resume" / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    _drop_abandoned(folder.parent)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def _drop_abandoned(folder: Path) -> None:
    """Remove what runs left that nobody went on with; of what another run holds, nothing."""
    for path in {left.with_suffix("") for left in folder.iterdir()}:
        lock = path.with_suffix(".lock")
        with suppress(Timeout, FileNotFoundError):  # another run may drop the same
            if time.time() - (path if path.exists() else lock).stat().st_mtime > ABANDONED:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
                    lock.unlink()
