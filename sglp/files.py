"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sglp.errors import SGLPError


@contextmanager
def new_folder(path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` when all is written and goes when something fails.

    Raises:
        SGLPError: there is a file at `path`, before anything is written.
    """
    target = Path(path)
    if target.is_file():
        raise SGLPError(f"{path} is a file: give a folder, or the name of one that is not there yet")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def new_file(path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is written and goes when something fails."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
