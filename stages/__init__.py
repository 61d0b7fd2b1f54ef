"""The stages of the pipeline. Each is run by DVC as ``python -m stages.NAME``."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    version("sglp")
except PackageNotFoundError:
    sys.exit(
        "sglp is not installed for " + sys.executable + ": activate the project's environment with "
        "'. .venv/bin/activate' (made by 'make setup'), or use 'make repro'"
    )

if not sys.stderr.isatty():
    # Libraries' progress bars too: in a log they are thousands of lines. It is read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
