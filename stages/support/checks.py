"""Check what the schema of params.yaml can't tell."""

from sglp.budget import check_target
from sglp.scoring.combinations import check_search
from sglp.scoring.methods import check_search_budget, find_criterion, find_method


def check_params(params: dict) -> None:
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
        check_search_budget(params["score"]["budget"], params["score"]["search"])
