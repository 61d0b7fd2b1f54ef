"""The schema of params.yaml: all parameters with their types and bounds."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sglp.choices import Cuts, Estimator, Feature, Kernel, Reconstruction, Scope, Search
from sglp.tasks.schemas.workload import Positive, Seed, Share, Strict

CostShare = Annotated[float, Field(gt=0, lt=1)]

ABSENT: Any = None  # a default is not validated, so an explicit null is an error


class Target(Strict):
    """The largest share of the dense network's cost that may remain, for one kind of cost."""

    macs: CostShare = ABSENT
    parameters: CostShare = ABSENT
    latency: CostShare = ABSENT

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("it must be null or have exactly one of macs, parameters and latency, e.g. {macs: 0.5}")
        return self


class Cka(Strict):
    """How similarity is computed."""

    estimator: Estimator
    kernel: Kernel


class Segment(Strict):
    """How layers are divided into segments, and the threshold of `k: auto`."""

    by: Cuts
    feature: Feature
    min_loss_drop: Annotated[float, Field(gt=0, lt=1)]


class Score(Strict):
    """How combinations of layers are scored and searched."""

    criterion: Annotated[str, Field(min_length=1)]
    search: Search
    batches: Positive
    random_inits: Positive
    max_evaluations: Positive
    beam_width: Positive
    budget: list[Positive] | None


class Prune(Strict):
    """The weights and batch-norm statistics of the pruned network before fine-tuning."""

    weights: Literal["trained", "random"]
    recalibration_samples: Annotated[int, Field(ge=0)]


class Reconstruct(Strict):
    """How the kept layers are refitted to the dense network's activations."""

    method: Reconstruction | Literal["none"]
    scope: Scope
    ridge: Annotated[float, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]


class Benchmark(Strict):
    """How networks are timed."""

    repeats: Annotated[int, Field(ge=2)]


class Params(Strict):
    """The content of params.yaml."""

    model: Annotated[str, Field(min_length=1)]
    k: Positive | Literal["auto"]
    prune_ratio: Share
    target: Target | None
    method: Annotated[str, Field(min_length=1)]
    seed: Seed
    cka: Cka
    segment: Segment
    score: Score
    prune: Prune
    reconstruct: Reconstruct
    benchmark: Benchmark
