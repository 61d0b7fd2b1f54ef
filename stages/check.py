"""Not a stage: checks params.yaml and the chosen workload before anything runs. ``python -m stages.check``."""

import sys
from pathlib import Path

from sglp.budget import check_target
from sglp.errors import SGLPError
from sglp.methods import check_shared, find_criterion, find_method
from sglp.scoring import check_search
from sglp.tasks.evaluation import find_evaluation
from sglp.tasks.task import schema_of
from stages.support.dials import Params
from stages.support.params import check, read_yaml, workload_path
from stages.support.userfiles import there


def main() -> None:
    """One clear sentence for the first fault, or nothing."""
    path = Path("params.yaml")
    params = read_yaml(path)
    check(Params, params, path)
    workload = workload_path(params["model"])
    content = read_yaml(workload)
    check(schema_of(content), content, workload)
    for name, file in content["files"].items():
        there(workload, name, file)
    find_evaluation(content["task"]).check_workload(content)
    check_dials(params)


def check_dials(params: dict) -> None:
    """Check what the schema can't tell: that there are a method and a criterion of these names, and what goes together.

    A user's own are looked up when they are used.
    """
    for name, find in ((params["method"], find_method), (params["score"]["criterion"], find_criterion)):
        if ":" not in name:
            find(name)
    if params["method"] == "sglp" and ":" not in params["score"]["criterion"]:
        check_search(params["score"]["search"], find_criterion(params["score"]["criterion"]))
    if params["target"] is not None:
        check_target(params["target"], params["score"]["budget"])
    if params["method"] == "sglp":  # others have no budget a segment
        check_shared(params["score"]["budget"], params["score"]["search"])


if __name__ == "__main__":
    try:
        main()
    except SGLPError as error:
        sys.exit(str(error))
