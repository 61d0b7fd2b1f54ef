"""Runs a stage: its versions, its parameters, its errors in one sentence."""

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
    """Run a stage's `main(params, workload)`. An error that the user can fix becomes one sentence, with exit code 1.

    Args:
        main: the stage.
        name: name of its file.
        end: called with the sentence.
    """
    try:
        check_versions()
        main(*declared(name))
    except SGLPError as error:
        end(f"{os.environ.get('DVC_STAGE', name)}: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every stage imports
            raise
        end(f"{os.environ.get('DVC_STAGE', name)}: {first_line(error)} Smaller batches in the workload may help.")
    except KeyboardInterrupt:
        sys.exit(130)


def check_versions() -> None:
    """The libraries whose versions change numbers must be those that versions.txt says, for it stands in for them.

    Raises:
        ParameterError: one of them is another.
    """
    for line in Path("versions.txt").read_text(encoding="utf-8").split():
        name, _, wanted = line.partition("==")
        # What is not installed changes no numbers: few need lm-eval, peft, gguf or timm, and code that does says so.
        if installed(name) not in (wanted, None):
            raise ParameterError(
                f"versions.txt says {line}, but {name} {installed(name)} is installed: run 'make setup' to install "
                "what is locked, or 'make versions' to write down what you have (all stages will run again)"
            )


def installed(name: str) -> str | None:
    """The version of a library, the same for all hardware ("+cpu"); None where it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None
