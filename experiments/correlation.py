"""How well a setting's scores predict the outcome of other plans for the same model and seed."""

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import pandas as pd

from experiments.records import Record
from experiments.settings import PLAN_PARAMS, Setting, used, within
from experiments.statistics import rank_correlation
from sglp.scores import LayerScore, SetScore


class Prediction(NamedTuple):
    """How a setting's scores rank plans.

    Attributes:
        tuned, pruned: the rank correlation of predicted and measured quality, after and before fine-tuning; positive
            is good, NaN if nothing varies.
        plans: the number of plans with a score.
        unknown: the number of plans without one: they keep layers in a segment that were not scored there.
    """

    tuned: float
    pruned: float
    plans: int
    unknown: int


def predicted(record: Record, removed: Sequence[int]) -> float:
    """Score another plan: sum the scores of its segments, or of its layers if the method scored single layers.

    Returns:
        NaN if a part of the plan has no score: the search did not see it, or another number of layers is kept.
    """
    kept = [i for i in range(len(record.layers)) if i not in set(removed)]
    layers = {row.layer: row.score for row in record.scores if isinstance(row, LayerScore)}
    if layers:
        return sum(layers.get(i, nan) for i in kept)
    scores = {(row.segment, row.kept): row.score for row in record.scores if isinstance(row, SetScore)}
    parts = [tuple(i for i in kept if first <= i <= last) for first, last in record.segments]
    return sum(scores.get(part, nan) for part in enumerate(parts))


def prediction(setting: Setting, records: Sequence[Record], quality: str, sign: int) -> Prediction:
    """Rank the plans of a model's runs by a setting's scores.

    Plans count, once each, if they keep as many layers and have the same seed and the same later stages.

    Args:
        setting: whose scores predict.
        records: all runs of the model.
        quality: the metric.
        sign: -1 if less is better.
    """
    rows = [
        (run, predicted(record, removed), *(sign * metrics[name][quality] for name in ("finetuned", "pruned")))
        for run, record in enumerate(setting.records)
        for removed, metrics in {other.removed: other.metrics for other in records if _alike(other, record)}.items()
    ]
    plans = pd.DataFrame(rows, columns=["run", "score", "tuned", "pruned"], dtype=float)
    scored = plans.dropna()
    tuned, pruned = (rank_correlation(scored["score"], scored[name], scored["run"]) for name in ("tuned", "pruned"))
    return Prediction(tuned, pruned, len(scored), len(plans) - len(scored))


def _alike(one: Record, other: Record) -> bool:
    """Return whether runs keep as many layers and have the same seed and the same parameters after the plan."""
    first, second = (
        [len(run.removed), run.params["seed"]]
        + [(key, value) for key, value in sorted(used(run.params).items()) if not within(key, PLAN_PARAMS)]
        for run in (one, other)
    )
    return first == second
