"""Git commands."""

import os
import subprocess
from pathlib import Path

from experiments.errors import RunError
from sglp.errors import first_line


def git(folder: Path, *arguments: str, index: Path | None = None) -> str:
    """Run a git command in a folder and return its output; `index` is a file to use as git's index.

    Raises:
        RunError: the command failed; the message is git's.
    """
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    process = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RunError(f"git {arguments[0]} failed in {folder.name}: {first_line(RuntimeError(process.stderr))}")
    return process.stdout.strip()
