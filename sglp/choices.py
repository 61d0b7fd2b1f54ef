"""Allowed values of parameters. This module does not import torch, so that parameters are checked quickly."""

from numbers import Integral
from typing import Any, Literal

Estimator = Literal["unbiased", "biased"]
Kernel = Literal["linear", "rbf"]
Pooling = Literal["flatten", "mean", "last", "tokens"]
Feature = Literal["rows", "row_sum"]
Cuts = Literal["fisher", "equal"]
Search = Literal["joint", "sequential", "independent"]
Reconstruction = Literal["auto", "closed_form", "gradient", "replace_me", "prune_comp"]
Scope = Literal["all", "gaps"]
CostKind = Literal["macs", "parameters", "latency"]
TaskName = Literal["image_classification", "causal_lm"]


def runs_sglp(method: str) -> bool:
    """Check whether a method is "sglp" or runs it among others, with its parameters."""
    return method in ("sglp", "tournament")


def is_whole_number(value: Any) -> bool:
    """Check whether a value is an integer, of Python or numpy; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)
