"""The figures of a report as text: the outcome in one sentence, rows of dense against pruned and fine-tuned."""

from typing import NamedTuple

from stages.support.params import flat

NETWORKS = ("dense", "pruned", "finetuned")


class Metric(NamedTuple):
    """How a metric is shown: a "share" as per cent, a "count" with a prefix (k, M), all else as a number."""

    label: str
    form: str = "number"
    unit: str = ""


# In the order of the table. The first that a task reports is the quality that the outcome names.
METRICS = {
    "accuracy": Metric("accuracy (top-1)", "share"),
    "accuracy_top5": Metric("accuracy (top-5)", "share"),
    "perplexity": Metric("perplexity"),
    "loss": Metric("loss"),
    "params": Metric("parameters", "count"),
    "macs": Metric("MACs a sample", "count"),
    "flops": Metric("FLOPs a sample", "count"),
    "bytes": Metric("size on disk", "count", "B"),
    "latency_seconds": Metric("latency", "count", "s"),
    "samples_per_second": Metric("throughput", "number", "samples/s"),
    "peak_memory_bytes": Metric("peak memory", "count", "B"),
}


def outcome(layers: list[dict], metrics: dict, benchmark: dict) -> str:
    """One sentence: what is gone, what it saved, what it cost."""
    dense, tuned = metrics["dense"], metrics["finetuned"]
    gone = sum(layer["fate"] == "removed" for layer in layers)
    parts = [
        f"{100 * (1 - tuned[key] / dense[key]):.1f} % fewer {name}"
        for key, name in (("macs", "MACs"), ("params", "parameters"))
        if dense.get(key) and key in tuned
    ]
    for key, metric in METRICS.items():
        if key in dense and key in tuned:
            before, after = (_number(metric, m[key], dense[key], m.get("samples"), digits=1) for m in (dense, tuned))
            name = metric.label.partition(" (")[0]
            parts.append(f"{name} {before} → {after} ({_change(metric, tuned[key], dense[key], digits=1)})")
            break
    for size in _sizes(benchmark)[:1]:
        parts.append(f"{benchmark['batch'][size]['speedup']['median']:.1f} times as fast at batch {size}")
    return f"{gone} of {len(layers)} layers {'is' if gone == 1 else 'are'} gone: {', '.join(parts)}."


def metric_rows(metrics: dict) -> list[list[str]]:
    """Rows of the table: label, dense, pruned and its change, fine-tuned and its change; unknown metrics come last."""
    values = {name: flat(metrics[name]) for name in NETWORKS}
    found = {key: None for name in NETWORKS for key in values[name] if key != "samples"}
    keys = [key for key in METRICS if key in found] + [key for key in found if key not in METRICS]
    samples = values["dense"].get("samples")
    return [_row(METRICS.get(key, Metric(key)), [values[name].get(key) for name in NETWORKS], samples) for key in keys]


def benchmark_rows(benchmark: dict) -> list[list[str]]:
    """Rows as those of `metric_rows`, for every size of batch; what was pruned is timed when it is fine-tuned."""
    rows = []
    for size in _sizes(benchmark):
        measured = benchmark["batch"][size]
        for key in sorted(measured, key=lambda key: ([*METRICS, key].index(key), key)):
            metric = METRICS.get(key, Metric(key))
            metric = metric._replace(label=f"{metric.label}, batch {size}")
            if key == "speedup":
                value = "{median:.2f} ({quartile_1:.2f}-{quartile_3:.2f})".format(**measured[key])
                rows.append([f"times as fast, batch {size}", "", "", "", value, ""])
            else:
                rows.append(_row(metric, [measured[key].get(name) for name in NETWORKS]))
    return rows


def _sizes(benchmark: dict) -> list[str]:
    """Sizes of batches, small ones first."""
    return sorted(benchmark["batch"], key=int)


def _row(metric: Metric, values: list, samples: int | None = None) -> list[str]:
    dense, *others = values
    cells = [metric.label, _number(metric, dense, dense, samples)]
    for value in others:
        cells += [_number(metric, value, dense, samples), _change(metric, value, dense)]
    return cells


def _number(metric: Metric, value, scale, samples: int | None = None, digits: int = 2) -> str:
    """A value with its unit, with the prefix that suits `scale`; a share of samples with its standard error."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if metric.form == "share":
        error = f" ± {100 * (value * (1 - value) / samples) ** 0.5:.{digits}f}" if samples else ""
        return f"{100 * value:.{digits}f}{error} %"
    prefix = ""
    if metric.form == "count":
        prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
        factor, prefix = next((pair for pair in prefixes if abs(scale or value) >= pair[0]), (1, ""))
        value = value / factor
    text = f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:#.4g}"
    return f"{text} {prefix}{metric.unit}".strip()


def _change(metric: Metric, value, dense, digits: int = 2) -> str:
    """The change against the dense network: of shares in points, of all else in per cent."""
    if not (isinstance(value, int | float) and isinstance(dense, int | float)):
        return ""
    if metric.form == "share":
        return f"{100 * (value - dense):+.{digits}f} points"
    return f"{100 * (value / dense - 1):+.1f} %" if dense else ""
