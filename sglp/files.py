"""Write files and folders atomically: they appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sglp.errors import SGLPError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to write into; it replaces `path` on success and is deleted on failure.

    Raises:
        SGLPError: `path` is a file; this is checked before anything is written.
    """
    target = Path(path)
    if target.is_file():
        raise SGLPError(f"{path} is a file: give a folder, which need not exist yet")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it replaces `path` on success and is deleted on failure."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
