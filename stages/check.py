"""Not a stage: checks params.yaml and the chosen workload before anything runs. ``python -m stages.check``."""

import sys
from pathlib import Path

from sglp.errors import SGLPError
from sglp.tasks.workload import Workload
from stages.support.dials import Params
from stages.support.params import check, read_yaml, workload_path


def main() -> None:
    """One clear sentence for the first fault, or nothing."""
    path = Path("params.yaml")
    params = read_yaml(path)
    check(Params, params, path)
    workload = workload_path(params["model"])
    content = read_yaml(workload)
    check(Workload, content, workload)
    from sglp.tasks.images import make_transforms

    for transforms in (
        content["data"]["prepare"]["transforms"],
        *(content[r]["augment"] for r in ("pretrain", "finetune")),
    ):
        make_transforms(transforms)


if __name__ == "__main__":
    try:
        main()
    except SGLPError as error:
        sys.exit(str(error))
