"""Runs a stage: its parameters, its errors in one sentence, its first lines."""

import os
import sys
from collections.abc import Callable

from sglp.errors import SGLPError
from stages.support.params import View, declared


def run(main: Callable[[View, View], None], name: str) -> None:
    """Run a stage's `main(params, workload)`; what the user can mend is told in one sentence, with exit code 1."""
    try:
        main(*declared(name))
    except SGLPError as error:
        sys.exit(f"{os.environ.get('DVC_STAGE', name)}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
