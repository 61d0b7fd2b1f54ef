"""The tables of a comparison as text, for HTML and Markdown."""

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.cells import amount, error, number, with_spread
from experiments.correlation import prediction
from experiments.outcomes import Comparison, Quality
from experiments.settings import changed, series, yaml_text
from experiments.statistics import removals, stability
from stages.support.outcome import METRICS, ranges

# Metrics that have a column elsewhere, or say what others were measured on. Of corruptions, only means are shown.
NOT_SHOWN = re.compile(
    r"(params|macs|flops|macs_per_token|flops_per_token|bytes|samples|tokens)$"
    r"|.*(_questions|\.samples)$|robustness\.corruptions\.\d\.(?!mean$)"
)


class Table(NamedTuple):
    """Columns, and rows with a text per column; "#" is a setting's number, the best is 1."""

    columns: list[str]
    rows: list[list[str]]


def table_of(frame: pd.DataFrame) -> Table:
    """Convert a frame to text, without the columns that are empty in every row."""
    frame = frame.astype(object).fillna("").astype(str)
    frame = frame.loc[:, (frame != "").any()] if len(frame) else frame
    return Table(list(frame.columns), frame.to_numpy().tolist())


def tables_of(comparison: Comparison) -> dict[str, Table]:
    """Make all tables of a comparison; one without content has no rows."""
    base = comparison.points[["setting"]].copy()
    base["runs"] = comparison.qualities().size().astype(str)
    base[comparison.quality.label] = comparison.qualities().apply(partial(with_spread, comparison.quality))
    base["s.e."] = comparison.qualities().apply(partial(error, comparison.quality))
    for network in ("pruned", "reconstructed"):
        base[network] = comparison.qualities(network).apply(partial(with_spread, comparison.quality))
    tables = {
        "outcome": _outcome(comparison, base.copy()),
        "metrics": metrics(comparison, also_measured(comparison)),
        "layers": _layers(comparison, base.drop(0)[["setting", "runs"]]),
        "correlation": _correlation(comparison, base.drop(0)[["setting"]]),
        "cost": _cost(comparison, base.drop(0)[["setting", comparison.quality.label]]),
    }
    for table in tables.values():
        table.insert(0, "#", ["" if number == 0 else number for number in table.index])
    tables |= {"k": _k(comparison, base), "ablations": _ablations(comparison, base), "runs": _runs(comparison)}
    return {name: table_of(table) for name, table in tables.items()}


def _outcome(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    points, groups = comparison.points, comparison.runs.groupby("#")
    table.loc[0, comparison.quality.label] = number(comparison.quality, points["quality"][0])
    for cost in (cost for cost in comparison.costs if cost not in comparison.timed):
        dense = points[cost][0]
        table[cost] = [f"{amount(value)} ({100 * value / dense:.0f} %)" for value in points[cost]]
        table.loc[0, cost] = amount(dense)
    for name in comparison.timed:
        medians = groups[[f"{name}.seconds", f"{name}.speedup"]].median().dropna()
        texts = [f"{amount(seconds, 's')} ({speedup:.2f} times)" for _, seconds, speedup in medians.itertuples()]
        table[name] = pd.Series(texts, medians.index, dtype=object)
    for label, column, form in (("score seconds", "cost.seconds", "{:.3g}"), ("passes", "passes", "{:,.0f}")):
        table[label] = _medians(comparison, column, form)
    fronts = {label.partition(",")[0]: comparison.front(label) for label in comparison.costs}
    on_front = [", ".join(label for label, front in fronts.items() if number in front) for number in table.index]
    table["on the Pareto front of"] = on_front
    table["removed layers (first run)"] = ["", *(ranges(setting.records[0].removed) for setting in comparison.settings)]
    return table


def also_measured(comparison: Comparison) -> list[str]:
    """Return the metrics besides the quality that rate fine-tuned networks."""
    keys = dict.fromkeys(key for record in comparison.records for key in record.metrics["finetuned"])
    return [key for key in keys if key != comparison.quality.key and not NOT_SHOWN.match(key)]


def metrics(comparison: Comparison, keys: Sequence[str]) -> pd.DataFrame:
    """Make the table of other metrics of the fine-tuned networks; a setting has a value if all of its runs do."""
    table = comparison.points[["setting"]].copy()
    for measure in map(_measure, keys):
        values = comparison.runs.groupby("#")[f"finetuned.{measure.key}"]
        table[measure.label] = values.apply(partial(with_spread, measure))[values.count() == values.size()]
        table.loc[0, measure.label] = dense_networks(comparison, measure)
    return table if keys else table[:0]


def dense_networks(comparison: Comparison, measure: Quality) -> str:
    """Write a metric of the dense network; if several kinds of processors trained one each, of all, the best first."""
    networks = comparison.runs.drop_duplicates("dense").sort_values(f"dense.{comparison.quality.key}", ascending=False)
    values = networks.get(f"dense.{measure.key}", pd.Series(dtype=float)).dropna()
    return " or ".join(dict.fromkeys(number(measure, value) for value in values))


def _measure(key: str) -> Quality:
    known, robust = METRICS.get(key), key.startswith("robustness.")
    share = known.form == "share" if known else robust or key.endswith(("_acc", "_acc_norm"))
    label = key.removeprefix("robustness.").replace(".", " ", 1).replace(".mean", ", mean") if robust else key
    return Quality(key, known.label if known else label, 1, share)


def _k(comparison: Comparison, base: pd.DataFrame) -> pd.DataFrame:
    """Quality against k, for settings that differ only in k."""
    rows = [(label, setting) for label, group in series(comparison.settings).items() for setting in group]
    table = base.set_index("setting").loc[[setting.label for _, setting in rows]].drop(columns="s.e.")
    table.insert(0, "setting", [label for label, _ in rows])
    table.insert(1, "k", [setting.params["k"] for _, setting in rows])
    return table


def _ablations(comparison: Comparison, base: pd.DataFrame) -> pd.DataFrame:
    """The reference, and the settings that differ from it in one parameter."""
    quality, start = comparison.quality, comparison.settings[comparison.reference - 1]
    rows = [{"parameter": "reference", "value": start.label, **base.loc[comparison.reference]}]
    others = [(changed(start.params, setting.params), n, setting) for n, setting in enumerate(comparison.settings, 1)]
    for (key,), n, setting in sorted((row for row in others if len(row[0]) == 1), key=lambda row: row[0]):
        change = comparison.difference(n, comparison.reference)
        old, new = (yaml_text(params.get(key)) for params in (start.params, setting.params))
        row = {"parameter": key.removeprefix("workload."), **base.loc[n], "common seeds": str(len(change))}
        row["value"] = f"{old} → {setting.label if key == 'method' else new}"
        if len(change):
            row["change"] = f"{100 * change.mean():+.2f} points" if quality.share else f"{change.mean():+#.3g}"
            row["s.e. of the change"] = error(quality, change)
        rows.append(row)
    columns = ["parameter", "value", "runs", quality.label, "change", "s.e. of the change", "common seeds"]
    return pd.DataFrame(rows, columns=columns)


def _layers(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """The layers that all runs of a setting remove, and those that some runs remove."""
    removed = [removals([run.removed for run in s.records], len(s.records[0].layers)) for s in comparison.settings]
    table["Jaccard similarity"] = [stability(matrix) for matrix in removed]
    table["Jaccard similarity"] = table["Jaccard similarity"].map("{:.2f}".format, na_action="ignore")
    for label, full in (("always removed", True), ("sometimes removed", False)):
        masks = [matrix.any(axis=0) & (matrix.all(axis=0) == full) for matrix in removed]
        table[label] = [ranges(np.flatnonzero(mask).tolist()) for mask in masks]
    return table


def _correlation(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """How well each setting's scores rank the plans that were tried."""
    quality = comparison.quality
    rows = [prediction(setting, comparison.records, quality.key, quality.sign) for setting in comparison.settings]
    columns = ["correlation, fine-tuned", "correlation, pruned", "plans", "without a score"]
    numbers = pd.DataFrame(rows, table.index).set_axis(columns, axis=1)
    numbers[columns[:2]] = numbers[columns[:2]].map("{:+.2f}".format, na_action="ignore")
    return table.join(numbers[columns[2:] + columns[:2]])


def _cost(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """The cost of finding the plan: medians over runs."""
    keys = list(dict.fromkeys(key for record in comparison.records for key in record.cost or {}))
    costs = pd.DataFrame({key.replace("_", " "): _medians(comparison, f"cost.{key}", "{:,.4g}") for key in keys})
    return table[["setting"]].join(costs.dropna(how="all"), how="inner").join(table[comparison.quality.label])


def _runs(comparison: Comparison) -> pd.DataFrame:
    runs, show = comparison.runs, partial(number, comparison.quality)
    table = runs[["experiment"]].assign(setting=runs["#"].map(comparison.points["setting"]), seed=runs["seed"])
    columns = {comparison.quality.label: "finetuned", "pruned": "pruned", "reconstructed": "reconstructed"}
    for label, network in columns.items():
        table[label] = runs[f"{network}.{comparison.quality.key}"].map(show)
    return table.assign(**{"removed layers": runs["removed"].map(ranges)})


def _medians(comparison: Comparison, column: str, form: str) -> pd.Series:
    """Format the median of each setting's runs that have a value."""
    values = comparison.runs.reindex(columns=[column]).groupby(comparison.runs["#"])[column]
    return values.median().map(form.format, na_action="ignore")
