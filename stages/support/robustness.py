"""Rows of the report for accuracy under attacks and corruptions, in the form of `metric_rows`."""

from stages.support.outcome import NETWORKS, Metric, row


def robustness_rows(metrics: dict) -> list[list[str]]:
    """Return rows for clean images, for every attack, and for the mean over corruptions; none if not measured."""
    dense = metrics["dense"].get("robustness")
    if dense is None:
        return []
    rows = [_row(f"accuracy, {dense['samples']:,} clean images", metrics, "clean")]
    for attack in ("fgsm", "pgd"):
        for eps in sorted(dense.get(attack, {}), key=float):
            label = f"accuracy under {attack.upper()}, ε = {_levels(float(eps))}"
            rows.append(_row(label, metrics, attack, eps))
    for severity, kinds in sorted(dense.get("corruptions", {}).items()):
        label = f"accuracy under corruption, severity {severity}, mean of {len(kinds) - 1} kinds"
        rows.append(_row(label, metrics, "corruptions", severity, "mean"))
    return rows


def corruption_rows(metrics: dict) -> list[list[str]]:
    """Return a row for every kind and severity of corruption; none if not measured."""
    dense = metrics["dense"].get("robustness", {})
    return [
        _row(f"{kind.replace('_', ' ')}, severity {severity}", metrics, "corruptions", severity, kind)
        for severity, kinds in sorted(dense.get("corruptions", {}).items())
        for kind in sorted(kinds)
        if kind != "mean"
    ]


def _row(label: str, metrics: dict, *keys: str) -> list[str]:
    values = [metrics[name]["robustness"] for name in NETWORKS]
    # Corruptions of one image are not independent, so their mean has another standard error.
    samples = None if keys[-1] == "mean" else values[0]["samples"]
    for key in keys:
        values = [value[key] for value in values]
    return row(Metric(label, "share"), values, samples)


def _levels(eps: float) -> str:
    """Format the largest change of a pixel as n/255 if n is a whole number."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 0.01 else f"{eps:g}"


def without_kinds(metrics: dict) -> dict:
    """Keep only the means over kinds of corruption: `dvc exp show` has no room for all kinds."""
    if "robustness" not in metrics:
        return metrics
    robustness = metrics["robustness"]
    means = {severity: {"mean": kinds["mean"]} for severity, kinds in robustness.get("corruptions", {}).items()}
    return metrics | {"robustness": robustness | {"corruptions": means}}
