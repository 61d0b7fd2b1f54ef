"""The stages of the pipeline. Each is run by DVC as ``python -m stages.NAME``."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    version("sglp")
except PackageNotFoundError:
    sys.exit(
        "sglp is not installed for " + sys.executable + ": activate the project's environment with "
        "'. .venv/bin/activate' (created by 'make setup'), or use 'make repro'"
    )

if not sys.stderr.isatty():
    # Progress bars, including those of libraries, would fill a log. tqdm reads the variable when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
