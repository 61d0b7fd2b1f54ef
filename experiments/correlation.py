"""Does a score know what the plan is worth? What a setting scored predicts the other plans of its model and seed."""

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple

from experiments.records import Record
from experiments.settings import OF_THE_PLAN, Setting, asked, begins
from experiments.statistics import rank_correlation
from sglp.scores import LayerScore


class Prediction(NamedTuple):
    """How a setting's scores rank plans.

    Attributes:
        tuned, pruned: rank correlation of the predicted with the measured quality, after and before fine-tuning; + is
            good. None where nothing varies.
        plans: how many were predicted.
        unknown: how many plans keep layers in a segment that were not scored there.
    """

    tuned: float | None
    pruned: float | None
    plans: int
    unknown: int


def predicted(record: Record, removed: Sequence[int]) -> float | None:
    """The score of another plan: the sum over segments, or over the layers that stay where layers were scored.

    Returns:
        None where a segment keeps what was not scored: another number of layers, or what a beam never met.
    """
    kept = [i for i in range(len(record.layers)) if i not in set(removed)]
    of_layers = {row.layer: row.score for row in record.scores if isinstance(row, LayerScore)}
    if of_layers:
        parts = [of_layers.get(i) for i in kept]
    else:
        scores = {(row.segment, row.kept): row.score for row in record.scores}
        parts = [
            scores.get((number, tuple(i for i in kept if first <= i <= last)))
            for number, (first, last) in enumerate(record.segments)
        ]
    return None if None in parts or isnan(sum(parts)) else sum(parts)


def prediction(setting: Setting, records: Sequence[Record], quality: str, sign: int) -> Prediction:
    """Rank the plans of all records of the setting's model by the setting's scores.

    Plans count that keep as many layers, have the same seed, and went through the same after it; each once.

    Args:
        setting: whose scores predict.
        records: of one model.
        quality: the metric.
        sign: -1 where less is better.
    """
    tuned, pruned, unknown = [], [], 0
    for record in setting.records:
        plans = {
            other.removed: other
            for other in records
            if len(other.removed) == len(record.removed) and _then(other) == _then(record)
        }
        scores = {removed: predicted(record, removed) for removed in plans}
        known = [removed for removed in plans if scores[removed] is not None]
        unknown += len(plans) - len(known)
        for network, pairs in (("finetuned", tuned), ("pruned", pruned)):
            measured = [sign * plans[removed].metrics[network][quality] for removed in known]
            pairs.append(([scores[removed] for removed in known], measured))
    plans = sum(len(scores) for scores, _ in tuned)
    return Prediction(rank_correlation(tuned), rank_correlation(pruned), plans, unknown)


def _then(record: Record) -> tuple:
    """The seed, and what a plan goes through."""
    dials = {key: value for key, value in asked(record.dials).items() if not begins(key, OF_THE_PLAN)}
    return record.dials["seed"], dials
