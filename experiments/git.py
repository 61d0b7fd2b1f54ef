"""Git, by its own commands."""

import os
import subprocess
from pathlib import Path

from sglp.errors import SGLPError, first_line


class RunError(SGLPError):
    """A run of the pipeline can't begin, or one of its stages failed."""


def git(folder: Path, *arguments: str, index: Path | None = None) -> str:
    """Run a git command in a folder, give what it printed.

    Args:
        folder: where.
        arguments: of git.
        index: a file to use in place of the repository's own index, which stays as it is.

    Raises:
        RunError: what git says.
    """
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"git {arguments[0]} failed in {folder.name}: {first_line(RuntimeError(done.stderr))}")
    return done.stdout.strip()
