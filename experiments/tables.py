"""The comparison as tables of text, for HTML and Markdown alike."""

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from experiments.cells import amount, error, number, with_spread
from experiments.correlation import prediction
from experiments.outcomes import Comparison, Quality, latencies
from experiments.records import Record
from experiments.settings import Setting, changed, plain, series
from experiments.statistics import shares, stability
from stages.support.outcome import METRICS, ranges

# Metrics with a place of their own, or that count what others were measured on. Of corruptions, the means have to do.
_COUNTS = r"_questions$|\.samples$|^robustness\.corruptions\.\d\.(?!mean$)"
NOT_MORE = ("params", "macs", "flops", "macs_per_token", "flops_per_token", "bytes", "samples", "tokens")


class Table(NamedTuple):
    """Columns, and rows of as many cells; where a setting has a number, "#" is its place by quality."""

    columns: list[str]
    rows: list[list[str]]


def tables_of(found: Comparison) -> dict[str, Table]:
    """All tables of a comparison: outcome, metrics, k, ablations, layers, correlation, cost, runs.

    Columns without a value are not there; a table that has nothing to tell has no rows.
    """
    made = {
        "outcome": _outcome(found),
        "metrics": metrics(found, also_measured(found)),
        "k": _k(found),
        "ablations": _ablations(found),
        "layers": _layers(found),
        "correlation": _correlation(found),
        "cost": _cost(found),
        "runs": _runs(found),
    }
    return {name: _filled(table) for name, table in made.items()}


def _filled(table: Table) -> Table:
    """The columns that have a value in any row."""
    filled = [i for i in range(len(table.columns)) if not table.rows or any(row[i] for row in table.rows)]
    return Table([table.columns[i] for i in filled], [[row[i] for i in filled] for row in table.rows])


def _outcome(found: Comparison) -> Table:
    quality = found.quality
    timed = list(dict.fromkeys(name for record in found.records for name in latencies(record)))
    fronts = [(cost.label.partition(",")[0], found.front(cost)) for cost in found.costs]
    counted = [cost for cost in found.costs if not cost.unit]
    columns = ["#", "setting", "runs", quality.label, "s.e.", "before tuning"]
    columns += [*(cost.label for cost in counted), *timed]
    columns += ["score seconds", "passes", "on the Pareto front of", "layers that go (first run)"]
    dense = ["", "dense network", "", number(quality, found.dense[quality.key]), "", ""]
    dense += [*(amount(cost.dense) for cost in counted), *("" for _ in timed), "", ""]
    rows = [[*dense, ", ".join(label for label, front in fronts if None in front), ""]]
    for place, setting in enumerate(found.settings):
        after = found.spread(setting)
        row = [str(place + 1), setting.label, str(after.n), with_spread(quality, after), error(quality, after)]
        row.append(with_spread(quality, found.spread(setting, "pruned")))
        row += [f"{amount(cost.values[place])} ({100 * cost.values[place] / cost.dense:.0f} %)" for cost in counted]
        row += [_latency(setting, name) for name in timed]
        row.append(_median(setting, lambda r: (r.cost or {}).get("seconds"), "{:.3g}".format))
        row.append(_median(setting, _passes, "{:,.0f}".format))
        row += [", ".join(label for label, front in fronts if place in front), ranges(setting.records[0].removed)]
        rows.append(row)
    return Table(columns, rows)


def _latency(setting: Setting, name: str) -> str:
    """Seconds, and how many times as fast as the dense network."""
    measured = [latencies(record)[name] for record in setting.records if name in latencies(record)]
    if not measured:
        return ""
    seconds, times = (median(values[key] for values in measured) for key in ("latency_seconds", "speedup"))
    return f"{amount(seconds, 's')} ({times:.2f} times)"


def also_measured(found: Comparison) -> list[str]:
    """The metrics besides the quality that say how good fine-tuned networks are."""
    known = dict.fromkeys(key for record in found.records for key in record.metrics["finetuned"])
    return [key for key in known if key not in (*NOT_MORE, found.quality.key) and not re.search(_COUNTS, key)]


def metrics(found: Comparison, keys: Sequence[str]) -> Table:
    """What was measured of the fine-tuned networks, besides the quality."""
    measures = [_measure(key) for key in keys]
    rows = [["", "dense network", *(dense_networks(found, one) for one in measures)]]
    for place, setting in enumerate(found.settings):
        row = [str(place + 1), setting.label]
        for one in measures:
            complete = all(one.key in record.metrics["finetuned"] for record in setting.records)
            other = found._replace(quality=one)
            row.append(with_spread(one, other.spread(setting)) if complete else "")
        rows.append(row)
    return Table(["#", "setting", *(one.label for one in measures)], rows if keys else [])


def dense_networks(found: Comparison, one: Quality) -> str:
    """A measure of the dense network; of all, the best first, where several kinds of processors made one each."""
    each = {found.of_dense(record): record.metrics["dense"] for record in reversed(found.records)}
    best_first = sorted(each.values(), key=lambda metrics: metrics[found.quality.key], reverse=True)
    return " or ".join(dict.fromkeys(number(one, metrics[one.key]) for metrics in best_first if one.key in metrics))


def _measure(key: str) -> Quality:
    known, robust = METRICS.get(key), key.startswith("robustness.")
    share = known.form == "share" if known else robust or key.endswith(("_acc", "_acc_norm"))
    label = key.removeprefix("robustness.").replace(".", " ", 1).replace(".mean", ", mean") if robust else key
    return Quality(key, known.label if known else label, 1, share)


def _k(found: Comparison) -> Table:
    """Quality against k, for settings that differ in k alone."""
    rows = [
        [label, str(setting.dials["k"]), str(len(setting.records))]
        + [with_spread(found.quality, found.spread(setting, network)) for network in ("finetuned", "pruned")]
        for label, group in series(found.settings).items()
        for setting in group
    ]
    return Table(["setting", "k", "runs", found.quality.label, "before tuning"], rows)


def _ablations(found: Comparison) -> Table:
    """The reference, and what differs from it in one dial."""
    quality, start = found.quality, found.reference
    after = found.spread(start)
    rows = [["reference", start.label, str(after.n), with_spread(quality, after), "", "", ""]]
    others = [(changed(start.dials, setting.dials), setting) for setting in found.settings]
    for (key,), setting in sorted((pair for pair in others if len(pair[0]) == 1), key=lambda pair: pair[0]):
        old, new = plain(start.dials.get(key)), plain(setting.dials.get(key))
        new = setting.label if key == "method" else new
        after, change = found.spread(setting), found.difference(setting)
        row = [key.removeprefix("workload."), f"{old} → {new}", str(after.n), with_spread(quality, after)]
        if change:
            more = f"{100 * change.mean:+.2f} points" if quality.share else f"{change.mean:+#.3g}"
            rows.append([*row, more, error(quality, change), str(change.n)])
        else:
            rows.append([*row, "", "", "0"])
    columns = ["dial", "value", "runs", quality.label, "change", "s.e. of the change", "seeds that both have"]
    return Table(columns, rows)


def _layers(found: Comparison) -> Table:
    """Which layers go, in all runs of a setting and in some."""
    rows = []
    for place, setting in enumerate(found.settings):
        sets = [record.removed for record in setting.records]
        share = shares(sets, len(setting.records[0].layers))
        alike = stability(sets)
        row = [str(place + 1), setting.label, str(len(sets)), "" if alike is None else f"{alike:.2f}"]
        row.append(ranges([i for i, value in enumerate(share) if value == 1]))
        row.append(ranges([i for i, value in enumerate(share) if 0 < value < 1]))
        rows.append(row)
    return Table(
        ["#", "setting", "runs", "Jaccard similarity", "layers that always go", "layers that go at times"], rows
    )


def _correlation(found: Comparison) -> Table:
    """How well each setting's scores rank the plans that were tried."""

    rows = []
    for place, setting in enumerate(found.settings):
        about = prediction(setting, found.records, found.quality.key, found.quality.sign)
        row = [str(place + 1), setting.label, str(about.plans), str(about.unknown)]
        rows.append(row + ["" if rho is None else f"{rho:+.2f}" for rho in (about.tuned, about.pruned)])
    told = ["correlation, fine-tuned", "correlation, before tuning"]
    return Table(["#", "setting", "plans", "without a score", *told], rows)


def _cost(found: Comparison) -> Table:
    """What it took to find the plan: medians over runs."""
    keys = list(dict.fromkeys(key for record in found.records for key in record.cost or {}))
    rows = []
    for place, setting in enumerate(found.settings):
        cells = [_median(setting, lambda r, k=key: (r.cost or {}).get(k), "{:,.4g}".format) for key in keys]
        if any(cells):
            quality = with_spread(found.quality, found.spread(setting))
            rows.append([str(place + 1), setting.label, *cells, quality])
    return Table(["#", "setting", *(key.replace("_", " ") for key in keys), found.quality.label], rows)


def _runs(found: Comparison) -> Table:
    quality = found.quality
    rows = [
        [record.name, setting.label, str(record.dials["seed"])]
        + [number(quality, record.metrics[network][quality.key]) for network in ("finetuned", "pruned")]
        + [ranges(record.removed)]
        for setting in found.settings
        for record in setting.records
    ]
    return Table(["experiment", "setting", "seed", quality.label, "before tuning", "layers that go"], rows)


def _median(setting: Setting, value: Callable, form: Callable) -> str:
    """The median over the runs that have a value."""
    values = [found for found in map(value, setting.records) if found is not None]
    return form(median(values)) if values else ""


def _passes(record: Record) -> float | None:
    passes = [record.cost[key] for key in ("forward_passes", "backward_passes") if key in (record.cost or {})]
    return sum(passes) if passes else None
