"""The figures of a report as text: the outcome in one sentence, rows of dense against pruned and fine-tuned."""

from collections.abc import Sequence
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
    "macs_per_token": Metric("MACs a token", "count"),
    "flops_per_token": Metric("FLOPs a token", "count"),
    "bytes": Metric("size on disk", "count", "B"),
    "latency_seconds": Metric("latency", "count", "s"),
    "samples_per_second": Metric("throughput", "number", "samples/s"),
    "tokens_per_second": Metric("throughput", "number", "tokens/s"),
    "peak_memory_bytes": Metric("peak memory", "count", "B"),
}


def outcome(layers: list[dict], metrics: dict, benchmark: dict) -> str:
    """One sentence: what is gone, what it saved, what it cost."""
    dense, tuned = metrics["dense"], metrics["finetuned"]
    gone = sum(layer["fate"] == "removed" for layer in layers)
    parts = [
        f"{100 * (1 - tuned[key] / dense[key]):.1f} % fewer {name}"
        for key, name in (("macs", "MACs"), ("macs_per_token", "MACs"), ("params", "parameters"))
        if dense.get(key) and key in tuned
    ]
    for key, metric in METRICS.items():
        if key in dense and key in tuned:
            before, after = (_number(metric, m[key], dense[key], m.get("samples"), digits=1) for m in (dense, tuned))
            name = metric.label.partition(" (")[0]
            parts.append(f"{name} {before} → {after} ({_change(metric, tuned[key], dense[key], digits=1)})")
            break
    for size in _sizes(benchmark)[:1]:
        for measured in benchmark["batch"][size]["work"]:
            doing = "" if measured["name"] == "forward" else f" in {measured['name']}"
            parts.append(f"{measured['speedup']['median']:.1f} times as fast{doing} at batch {size}")
    return f"{gone} of {len(layers)} layers {'is' if gone == 1 else 'are'} gone: {', '.join(parts)}."


def target_met(target: dict, benchmark: dict) -> str:
    """What was asked for and what was reached, in one sentence.

    Args:
        target: "of" what, the share that was "asked" for, and the one that was "reached".
        benchmark: has what a latency then is.
    """
    of, asked, reached = target["of"], target["asked"], target["reached"]
    name = {"macs": "MACs"}.get(of, of)
    said = f"Asked for at most {100 * asked:g} % of the dense network's {name}, the plan leaves {100 * reached:.1f} %"
    if of != "latency":
        return f"{said}."
    batch, found = next(iter(benchmark["batch"].items()))
    later = 1 / found["work"][0]["speedup"]["median"]
    return f"{said}, as one sample was timed before tuning; the benchmark has {100 * later:.1f} % at batch {batch}."


def metric_rows(metrics: dict) -> list[list[str]]:
    """Rows of the table: label, dense, pruned and its change, fine-tuned and its change; unknown metrics come last.

    "samples" and "tokens" say what the others were measured on. Shares of questions are named TASK_acc and
    TASK_acc_norm, their number TASK_questions. "robustness" has rows of its own.
    """
    values = {name: flat({key: v for key, v in metrics[name].items() if key != "robustness"}) for name in NETWORKS}
    counts = ("samples", "tokens")
    found = {key: None for name in NETWORKS for key in values[name] if key not in counts and not _counts(key)}
    first = [key for key in found if _of_questions(key)]
    quality = [key for key in METRICS if key in found]
    middle = 1 + max((quality.index(key) for key in ("perplexity", "loss") if key in quality), default=-1)
    keys = quality[:middle] + first + quality[middle:]
    keys += [key for key in found if key not in keys]
    return [row(_metric(key), [values[name].get(key) for name in NETWORKS], _asked(key, values)) for key in keys]


def benchmark_rows(benchmark: dict) -> list[list[str]]:
    """Rows as those of `metric_rows`, for every size of batch; what was pruned is timed when it is fine-tuned."""
    rows = []
    for size in _sizes(benchmark):
        measured = benchmark["batch"][size]
        for of_work in measured["work"]:
            where = f"batch {size}" if of_work["name"] == "forward" else f"{of_work['name']}, batch {size}"
            rows += [_timed(key, of_work[key], where) for key in METRICS if key in of_work]
            value = "{median:.2f} ({quartile_1:.2f}-{quartile_3:.2f})".format(**of_work["speedup"])
            rows.append([f"times as fast, {where}", "", "", "", value, ""])
        rows.append(_timed("peak_memory_bytes", measured["peak_memory_bytes"], f"batch {size}"))
    return rows


def row(metric: Metric, values: list, samples: int | None = None) -> list[str]:
    """A row of a table from the values of `NETWORKS`; `samples` are what a share is of, for its standard error."""
    dense, *others = values
    cells = [metric.label, _number(metric, dense, dense, samples)]
    for value in others:
        cells += [_number(metric, value, dense, samples), _change(metric, value, dense)]
    return cells


def prefix_of(value: float) -> tuple[float, str]:
    """The prefix of units that suits a value, and its factor."""
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
    return next((pair for pair in prefixes if abs(value) >= pair[0]), (1, ""))


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those in a row as "4-7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _timed(key: str, values: dict, where: str) -> list[str]:
    metric = METRICS[key]
    return row(metric._replace(label=f"{metric.label}, {where}"), [values.get(name) for name in NETWORKS])


def _of_questions(key: str) -> bool:
    return key.endswith(("_acc", "_acc_norm"))


def _counts(key: str) -> bool:
    return key.endswith("_questions")


def _metric(key: str) -> Metric:
    if _of_questions(key):
        task, by_length = key.removesuffix("_norm").removesuffix("_acc"), key.endswith("_norm")
        return Metric(f"{task} accuracy{', by length' if by_length else ''}", "share")
    return METRICS.get(key, Metric(key))


def _asked(key: str, values: dict) -> int | None:
    """How many samples a share is of."""
    dense = values["dense"]
    if _of_questions(key):
        return dense.get(f"{key.removesuffix('_norm').removesuffix('_acc')}_questions")
    return dense.get("samples")


def _sizes(benchmark: dict) -> list[str]:
    """Sizes of batches, small ones first."""
    return sorted(benchmark["batch"], key=int)


def _number(metric: Metric, value, scale, samples: int | None = None, digits: int = 2) -> str:
    """A value with its unit, with the prefix that suits `scale`; a share of samples with its standard error."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if metric.form == "share":
        error = f" ± {100 * (value * (1 - value) / samples) ** 0.5:.{digits}f}" if samples else ""
        return f"{100 * value:.{digits}f}{error} %"
    prefix = ""
    if metric.form == "count":
        factor, prefix = prefix_of(scale or value)
        value = value / factor
    large = abs(value) >= 1e7 and isinstance(value, float)
    text = f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:#.4g}"
    text = f"{value:.3g}" if large else text
    return f"{text} {prefix}{metric.unit}".strip()


def _change(metric: Metric, value, dense, digits: int = 2) -> str:
    """The change against the dense network: of shares in points, of all else in per cent."""
    if not (isinstance(value, int | float) and isinstance(dense, int | float)):
        return ""
    if metric.form == "share":
        return f"{100 * (value - dense):+.{digits}f} points"
    return f"{100 * (value / dense - 1):+.1f} %" if dense else ""
