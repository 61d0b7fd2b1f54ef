"""The outcome of one model's settings: quality, costs, and the Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.typing import SeriesGroupBy

from experiments.records import ExperimentError, Record
from experiments.settings import Setting, reference, settings
from experiments.statistics import pareto_front
from stages.support.outcome import METRICS
from stages.support.params import flat

SIGNS = {"accuracy": 1, "perplexity": -1, "loss": -1}  # metrics that rate networks, by precedence; 1: more is better
COSTS = {"macs": "MACs", "macs_per_token": "MACs per token", "params": "parameters"}


class Quality(NamedTuple):
    """The metric that settings are compared by; a `share` is shown in per cent."""

    key: str
    label: str
    sign: int
    share: bool


class Comparison(NamedTuple):
    """The settings of one model, numbered from 1, the best, as in its tables; the dense network has number 0.

    Attributes:
        records: all runs.
        settings: rated by the seeds that all of them have, if there are such seeds.
        reference: the number of the setting that ablations start from.
        quality: the metric that settings are compared by.
        dense: the dense network's metrics.
        runs: a run per row: the setting's number "#", "experiment", "seed", "removed" layers, the "dense" network,
            "passes", metrics as "NETWORK.METRIC", "cost.KEY", and of what was timed "NAME.seconds" and "NAME.speedup".
        points: by number, "setting" (the label), the mean "quality", its "deviation" over runs, and costs by label.
        timed: what was timed, such as "latency, batch 1"; these costs are shares of the dense network's.
    """

    records: list[Record]
    settings: list[Setting]
    reference: int
    quality: Quality
    dense: dict[str, Any]
    runs: pd.DataFrame
    points: pd.DataFrame
    timed: list[str]

    @property
    def costs(self) -> list[str]:
        """The labels of the costs."""
        return list(self.points.columns[3:])

    def qualities(self, network: str = "finetuned") -> SeriesGroupBy:
        """Group the quality of networks by the number of the setting."""
        return self.runs.groupby("#")[f"{network}.{self.quality.key}"]

    def difference(self, number: int, other: int) -> "pd.Series[float]":
        """Subtract the quality of another setting, seed by seed; empty if the settings have no seed in common.

        Runs whose dense networks differ are not compared: another kind of processor trained another network.
        """
        keys, column = ["seed", "dense"], f"finetuned.{self.quality.key}"
        runs = self.runs.drop_duplicates(["#", *keys], keep="last")
        pairs = runs[runs["#"] == number].merge(runs[runs["#"] == other], on=keys)
        return pairs[f"{column}_x"] - pairs[f"{column}_y"]

    def front(self, cost: str) -> list[int]:
        """Return the numbers on the Pareto front of a cost, the cheapest first."""
        return pareto_front(self.points[[cost, "quality"]].dropna() * [1, self.quality.sign])


def compare(records: Sequence[Record], default: dict[str, Any] | None = None) -> Comparison:
    """Compare the runs of one model (see `experiments.settings.by_model`).

    Args:
        records: at least one.
        default: parameters of the setting that ablations start from, if there is one.

    Raises:
        ExperimentError: the runs have no measure of quality in common.
    """
    measured = [metrics for record in records for metrics in record.metrics.values()]
    if not set(SIGNS).intersection(*measured):
        model = records[0].params["model"]
        raise ExperimentError(f"the runs of {model} can't be compared: their metrics must have {' or '.join(SIGNS)}")
    quality, dense = quality_of(*measured), records[0].metrics["dense"]
    groups = settings(records)
    runs = pd.DataFrame([_row(r, quality.key) | {"#": i} for i, setting in enumerate(groups) for r in setting.records])
    # A seed can be a lucky one for every setting: rate settings by common seeds.
    common = runs.groupby("seed")["#"].nunique() == len(groups)
    fair = runs[runs["seed"].map(common)] if common.any() else runs
    means = fair.groupby("#")[f"finetuned.{quality.key}"].apply(pd.Series.mean) * quality.sign
    order = means.sort_values(ascending=False, kind="stable").index
    runs["#"] = runs["#"].map({i: number for number, i in enumerate(order, 1)})
    runs = runs.sort_values("#", kind="stable", ignore_index=True)
    ordered = [groups[i] for i in order]
    timed = list(dict.fromkeys(name for record in records for name in _latencies(record)))
    points = _points(runs, dense, quality, timed)
    points.insert(0, "setting", ["dense network", *(setting.label for setting in ordered)])
    start = ordered.index(reference(groups, default)) + 1
    return Comparison(list(records), ordered, start, quality, dense, runs, points, timed)


def quality_of(*measured: Mapping[Any, Any]) -> Quality:
    """Return the metric that rates networks: the first of SIGNS that all of them have."""
    key = next(key for key in SIGNS if all(key in metrics for metrics in measured))
    return Quality(key, METRICS[key].label.partition(" (")[0], SIGNS[key], METRICS[key].form == "share")


def _row(record: Record, key: str) -> dict[str, Any]:
    """Return a run as a row of `Comparison.runs`."""
    cost = record.cost or {}
    passes = [cost[name] for name in ("forward_passes", "backward_passes") if name in cost]
    return {
        "experiment": record.name,
        "seed": record.params["seed"],
        "removed": record.removed,
        "dense": f"{record.metrics['dense'][key]:.4g}",  # the last digits are noise
        "passes": sum(passes) if passes else None,
        **flat({"cost": cost, **_latencies(record), **record.metrics}),
    }


def _latencies(record: Record) -> dict[str, dict[str, float]]:
    """Return what was timed at the smallest batch, by name: the median "seconds", fine-tuned, and the "speedup"."""
    batches = (record.benchmark or {}).get("batch", {})
    size = min(batches, key=int, default="")
    return {
        f"latency{'' if work['name'] == 'forward' else ' of ' + work['name']}, batch {size}": {
            "seconds": work["latency_seconds"]["finetuned"],
            "speedup": work["speedup"]["median"],
        }
        for work in batches.get(size, {}).get("work", [])
    }


def _points(runs: pd.DataFrame, dense: dict[str, Any], quality: Quality, timed: Sequence[str]) -> pd.DataFrame:
    """Return the mean quality, its deviation and the costs of the dense network and of every setting."""
    labels = {quality.key: "quality"} | {key: label for key, label in COSTS.items() if key in dense}
    finetuned = runs.filter(regex=r"^finetuned\.").rename(columns=lambda column: column.removeprefix("finetuned."))
    groups = finetuned[list(labels)].groupby(runs["#"])
    points = pd.concat([pd.DataFrame([dense])[list(labels)], groups.mean()]).rename(columns=labels)
    points.insert(1, "deviation", groups[quality.key].std())
    for name in timed:  # the dense network was timed in turn with the run's
        points[name] = (1 / runs[f"{name}.speedup"]).groupby(runs["#"]).median()
        points.loc[0, name] = 1
    return points.fillna({"deviation": 0})
