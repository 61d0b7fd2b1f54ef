"""Where a killed run's checkpoints live: outside the workspace, which DVC empties, under a key of all that the run
depends on; they go when the stage succeeds."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from stages.support.userfiles import checksum


@contextmanager
def resumable(stage: str, parameters: dict, inputs: Sequence[str]) -> Iterator[Path]:
    """A folder for the checkpoints of one run, the same one for the same stage, parameters and content of inputs."""
    content = [stage, parameters, [checksum(Path(path)) for path in inputs]]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = user_cache_path("sglp") / "resume" / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)
