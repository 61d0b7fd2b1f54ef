"""The values that options can have. Nothing here imports torch, so that parameters are checked in no time."""

from typing import Literal

Estimator = Literal["unbiased", "biased"]
Kernel = Literal["linear", "rbf"]
Pooling = Literal["flatten", "mean", "last", "tokens"]
Feature = Literal["rows", "row_sum"]
Cuts = Literal["fisher", "equal"]
Search = Literal["joint", "sequential", "independent"]
CostKind = Literal["macs", "parameters", "latency"]
TaskName = Literal["image_classification", "causal_lm"]
