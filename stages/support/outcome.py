"""The results of a report as text: the outcome in one sentence, and rows that compare the networks."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.support.params import flat

NETWORKS = ("dense", "pruned", "reconstructed", "finetuned")


class Metric(NamedTuple):
    """The format of a metric: a "share" in per cent, a "count" with a prefix (k, M), or a plain "number"."""

    label: str
    form: str = "number"
    unit: str = ""


# In the order of the table. The outcome names the first metric that a task reports.
METRICS = {
    "accuracy": Metric("accuracy (top-1)", "share"),
    "accuracy_top5": Metric("accuracy (top-5)", "share"),
    "perplexity": Metric("perplexity"),
    "loss": Metric("loss"),
    "params": Metric("parameters", "count"),
    "macs": Metric("MACs per sample", "count"),
    "flops": Metric("FLOPs per sample", "count"),
    "macs_per_token": Metric("MACs per token", "count"),
    "flops_per_token": Metric("FLOPs per token", "count"),
    "bytes": Metric("size on disk", "count", "B"),
    "latency_seconds": Metric("latency", "count", "s"),
    "samples_per_second": Metric("throughput", "number", "samples/s"),
    "tokens_per_second": Metric("throughput", "number", "tokens/s"),
    "peak_memory_bytes": Metric("peak memory", "count", "B"),
}


def outcome(layers: list[dict], metrics: dict, benchmark: dict) -> str:
    """Describe in one sentence what was removed, what that saves, and what it costs."""
    dense = metrics["dense"]
    tuned = metrics["finetuned"]
    removed = sum(layer["status"] == "removed" for layer in layers)
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
    return f"{removed} of {len(layers)} layers {'is' if removed == 1 else 'are'} removed: {', '.join(parts)}."


def target_met(target: dict, benchmark: dict) -> str:
    """Describe in one sentence the target and what was reached.

    Args:
        target: "of" is the kind of cost, "asked" the share that was asked for, "reached" the share that was reached.
        benchmark: content of benchmark.json, for a target of latency.
    """
    kind = target["of"]
    name = {"macs": "MACs"}.get(kind, kind)
    reached = f"{100 * target['reached']:.1f} %"
    sentence = f"Target: at most {100 * target['asked']:g} % of the dense network's {name}; the plan has {reached}"
    if kind != "latency":
        return f"{sentence}."
    batch, measured = next(iter(benchmark["batch"].items()))
    later = 1 / measured["work"][0]["speedup"]["median"]
    return (
        f"{sentence}, timed on one sample before fine-tuning; the benchmark gives {100 * later:.1f} % at batch {batch}."
    )


def metric_rows(metrics: dict) -> list[list[str]]:
    """Return rows of the table: label, dense network, then each other network and its change.

    Unknown metrics come last. "samples" and "tokens" have no row: they are the amount of test data. Accuracies of
    question tasks are named TASK_acc and TASK_acc_norm, their number of questions TASK_questions. "robustness" has rows
    of its own.
    """
    values = {name: flat({key: v for key, v in metrics[name].items() if key != "robustness"}) for name in NETWORKS}
    counts = ("samples", "tokens")
    reported = {
        key: None for name in NETWORKS for key in values[name] if key not in counts and not _is_question_count(key)
    }
    first = [key for key in reported if _is_question_accuracy(key)]
    quality = [key for key in METRICS if key in reported]
    middle = 1 + max((quality.index(key) for key in ("perplexity", "loss") if key in quality), default=-1)
    keys = quality[:middle] + first + quality[middle:]
    keys += [key for key in reported if key not in keys]
    return [row(_metric(key), [values[name].get(key) for name in NETWORKS], _num_samples(key, values)) for key in keys]


def benchmark_rows(benchmark: dict) -> list[list[str]]:
    """Return rows in the form of `metric_rows` for every batch size; only the dense and the last network are timed."""
    rows = []
    for size in _sizes(benchmark):
        measured = benchmark["batch"][size]
        for task in measured["work"]:
            where = f"batch {size}" if task["name"] == "forward" else f"{task['name']}, batch {size}"
            rows += [_timed(key, task[key], where) for key in METRICS if key in task]
            value = "{median:.2f} ({quartile_1:.2f}-{quartile_3:.2f})".format(**task["speedup"])
            rows.append([f"speedup, {where}", *[""] * (2 * len(NETWORKS) - 3), value, ""])
        rows.append(_timed("peak_memory_bytes", measured["peak_memory_bytes"], f"batch {size}"))
    return rows


def row(metric: Metric, values: list, samples: int | None = None) -> list[str]:
    """Format a row from the values of `NETWORKS`; `samples` is the number of samples behind a share."""
    dense, *others = values
    cells = [metric.label, _number(metric, dense, dense, samples)]
    for value in others:
        cells += [_number(metric, value, dense, samples), _change(metric, value, dense)]
    return cells


def prefix_of(value: float) -> tuple[float, str]:
    """Return the unit prefix that suits a value, after its factor."""
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
    return next((pair for pair in prefixes if abs(value) >= pair[0]), (1, ""))


def ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers, consecutive ones as "4-7"."""
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


def _is_question_accuracy(key: str) -> bool:
    return key.endswith(("_acc", "_acc_norm"))


def _is_question_count(key: str) -> bool:
    return key.endswith("_questions")


def _metric(key: str) -> Metric:
    if _is_question_accuracy(key):
        task, by_length = key.removesuffix("_norm").removesuffix("_acc"), key.endswith("_norm")
        return Metric(f"{task} accuracy{', by length' if by_length else ''}", "share")
    return METRICS.get(key, Metric(key))


def _num_samples(key: str, values: dict) -> int | None:
    """Return the number of samples or questions behind a share."""
    dense = values["dense"]
    if _is_question_accuracy(key):
        return dense.get(f"{key.removesuffix('_norm').removesuffix('_acc')}_questions")
    return dense.get("samples")


def _sizes(benchmark: dict) -> list[str]:
    """Return the batch sizes in ascending order."""
    return sorted(benchmark["batch"], key=int)


def _number(metric: Metric, value, scale, samples: int | None = None, digits: int = 2) -> str:
    """Format a value with its unit and the prefix that suits `scale`; a share with its standard error."""
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
    """Format the change relative to the dense network: shares in points, everything else in per cent."""
    if not (isinstance(value, int | float) and isinstance(dense, int | float)):
        return ""
    if metric.form == "share":
        return f"{100 * (value - dense):+.{digits}f} points"
    return f"{100 * (value / dense - 1):+.1f} %" if dense else ""
