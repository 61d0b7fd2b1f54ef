"""Run a stage: check library versions, read its parameters, and report an error in one sentence."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sglp.errors import SGLPError, first_line
from stages.support.params import DeclaredParams, ParameterError, declared


def run(
    main: Callable[[DeclaredParams, DeclaredParams], None], name: str, end: Callable[[str], None] = sys.exit
) -> None:
    """Run a stage's `main(params, workload)`; report an error that the user can fix in one sentence, with exit code 1.

    Args:
        main: the function that does the work of the stage.
        name: the name of the stage's file.
        end: called with the error message.
    """
    try:
        check_versions()
        main(*declared(name))
    except SGLPError as error:
        end(f"{os.environ.get('DVC_STAGE', name)}: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch.OutOfMemoryError; not every stage imports torch
            raise
        end(f"{os.environ.get('DVC_STAGE', name)}: {first_line(error)} Try smaller batches in the workload.")
    except KeyboardInterrupt:
        sys.exit(130)


def check_versions() -> None:
    """Check that the installed libraries that affect results have the versions in versions.txt.

    Stages depend on versions.txt in place of the libraries themselves.

    Raises:
        ParameterError: another version of a library is installed.
    """
    for line in Path("versions.txt").read_text(encoding="utf-8").split():
        name, _, required = line.partition("==")
        # A missing library does not change results: lm-eval, peft, gguf and timm are optional, and code that needs
        # one of them reports that it is missing.
        if installed(name) not in (required, None):
            raise ParameterError(
                f"versions.txt requires {line}, but {name} {installed(name)} is installed: run 'make setup' to install "
                "the locked versions, or 'make versions' to record the installed ones (all stages will run again)"
            )


def installed(name: str) -> str | None:
    """Return the version of a library without a hardware suffix such as "+cpu"; None if it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None
