"""Check what the schema of params.yaml can't express."""

from sglp.budget import check_target
from sglp.choices import runs_sglp
from sglp.scoring.combinations import check_search
from sglp.scoring.methods import check_search_budget, find_criterion, find_method


def check_params(params: dict) -> None:
    """Check that the method and the criterion exist, and that the parameters fit together.

    A user's own method or criterion is imported only when it is used.
    """
    for name, find in ((params["method"], find_method), (params["score"]["criterion"], find_criterion)):
        if ":" not in name:
            find(name)
    if runs_sglp(params["method"]) and ":" not in params["score"]["criterion"]:
        check_search(params["score"]["search"], find_criterion(params["score"]["criterion"]))
    if params["target"] is not None:
        check_target(params["target"], params["score"]["budget"])
    if runs_sglp(params["method"]):  # baselines have no budget per segment
        check_search_budget(params["score"]["budget"], params["score"]["search"])
