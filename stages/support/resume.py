"""Where a killed run's checkpoints live: outside the workspace, which DVC empties, under a key of all that the stage
depends on; they go when the stage succeeds."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from stages.support.params import View, entry, flat
from stages.support.userfiles import checksum


@contextmanager
def resumable(stage: str, params: View, workload: View) -> Iterator[Path]:
    """A folder for the checkpoints of one run: the same one for the same code, inputs and parameters.

    A second run of the same waits for the first, as two workers on a cold cache would write into each other's.
    """
    inputs = {path: checksum(Path(path)) for path in entry(stage)["deps"]}
    content = json.dumps([stage, inputs, flat(params), flat(workload)], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    folder = user_cache_path("sglp") / "resume" / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
