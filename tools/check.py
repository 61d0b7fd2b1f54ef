"""Check params.yaml and the chosen workload before anything runs: ``python -m tools.check``."""

import sys
from pathlib import Path

from sglp.errors import SGLPError
from sglp.tasks.evaluation import find_evaluation
from sglp.tasks.schemas import schema_of
from stages.support.checks import check_params
from stages.support.params import check, read_yaml, workload_path
from stages.support.schema import Params
from stages.support.userfiles import declared_file


def main() -> None:
    """Check params.yaml, the workload and its files, and raise the first error."""
    path = Path("params.yaml")
    params = read_yaml(path)
    check(Params, params, path)
    workload = workload_path(params["model"])
    content = read_yaml(workload)
    check(schema_of(content), content, workload)
    for name, file in content["files"].items():
        declared_file(workload, name, file)
    find_evaluation(content["task"]).check_workload(content)
    check_params(params)


if __name__ == "__main__":
    try:
        main()
    except SGLPError as error:
        sys.exit(str(error))
