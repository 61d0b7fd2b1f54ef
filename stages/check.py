"""Not a stage: checks params.yaml and the chosen workload before anything runs. ``python -m stages.check``."""

import sys
from pathlib import Path

from sglp.errors import SGLPError
from sglp.tasks.workload import Workload
from stages.support.params import Params, check, read_yaml, workload_path


def main() -> None:
    """One clear sentence for the first fault, or nothing."""
    path = Path("params.yaml")
    params = read_yaml(path)
    check(Params, params, path)
    workload = workload_path(params["model"])
    check(Workload, read_yaml(workload), workload)


if __name__ == "__main__":
    try:
        main()
    except SGLPError as error:
        sys.exit(str(error))
