"""The dials of params.yaml, with their types and bounds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sglp.choices import Cuts, Estimator, Feature, Kernel, Search
from sglp.tasks.schemas.workload import Positive, Seed, Share, Strict

Left = Annotated[float, Field(gt=0, lt=1)]


class Target(Strict):
    """The share of the dense network's cost that may be left, of one kind of cost."""

    macs: Left = None
    parameters: Left = None
    latency: Left = None

    @model_validator(mode="after")
    def _one_of_them(self):
        if len(self.model_fields_set) != 1:
            raise ValueError("it must be null, or have one of macs, parameters, latency, as macs: 0.5")
        return self


class Cka(Strict):
    """How similarity is computed."""

    estimator: Estimator
    kernel: Kernel


class Segment(Strict):
    """Where the cuts come from, what is segmented, and when `k: auto` stops."""

    by: Cuts
    feature: Feature
    min_loss_drop: Annotated[float, Field(gt=0, lt=1)]


class Score(Strict):
    """How combinations are scored and searched."""

    criterion: Annotated[str, Field(min_length=1)]
    search: Search
    batches: Positive
    random_inits: Positive
    max_evaluations: Positive
    beam_width: Positive
    budget: list[Positive] | None


class Prune(Strict):
    """What the pruned network starts with."""

    weights: Literal["trained", "random"]
    recalibration_samples: Annotated[int, Field(ge=0)]


class Benchmark(Strict):
    """How networks are timed."""

    repeats: Annotated[int, Field(ge=2)]


class Params(Strict):
    """params.yaml."""

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
    benchmark: Benchmark
