"""The stages of the pipeline. Each is run by DVC as ``python -m stages.NAME``."""

import sys
from importlib.metadata import PackageNotFoundError, version

try:
    version("sglp")
except PackageNotFoundError:
    sys.exit(
        "sglp is not installed for " + sys.executable + ": activate the project's environment with "
        "'. .venv/bin/activate' (made by 'make setup'), or use 'make repro'"
    )
