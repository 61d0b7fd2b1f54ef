"""Rows of the report on accuracy under attack and under corruption, as those of `metric_rows`; none without either."""

from stages.support.outcome import NETWORKS, Metric, row


def robustness_rows(metrics: dict) -> list[list[str]]:
    """Accuracy on the images as they are, under every attack, and under the corruptions on average."""
    dense = metrics["dense"].get("robustness")
    if dense is None:
        return []
    rows = [_row(f"accuracy, {dense['samples']:,} images as they are", metrics, "clean")]
    for attack in ("fgsm", "pgd"):
        for eps in sorted(dense.get(attack, {}), key=float):
            label = f"accuracy under {attack.upper()}, ε = {_levels(float(eps))}"
            rows.append(_row(label, metrics, attack, eps))
    for severity, kinds in sorted(dense.get("corruptions", {}).items()):
        label = f"accuracy under corruption, severity {severity}, mean of {len(kinds) - 1} kinds"
        rows.append(_row(label, metrics, "corruptions", severity, "mean"))
    return rows


def corruption_rows(metrics: dict) -> list[list[str]]:
    """Accuracy under every kind of corruption, severity by severity."""
    dense = metrics["dense"].get("robustness", {})
    return [
        _row(f"{kind.replace('_', ' ')}, severity {severity}", metrics, "corruptions", severity, kind)
        for severity, kinds in sorted(dense.get("corruptions", {}).items())
        for kind in sorted(kinds)
        if kind != "mean"
    ]


def _row(label: str, metrics: dict, *keys: str) -> list[str]:
    values = [metrics[name]["robustness"] for name in NETWORKS]
    # Corruptions of one image don't fail independently: their mean has another error than a single share.
    samples = None if keys[-1] == "mean" else values[0]["samples"]
    for key in keys:
        values = [value[key] for value in values]
    return row(Metric(label, "share"), values, samples)


def _levels(eps: float) -> str:
    """The largest change of a pixel in levels of 8 bits, where that is a whole number."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 0.01 else f"{eps:g}"


def without_kinds(metrics: dict) -> dict:
    """One network's metrics with the corruptions' means alone: `dvc exp show` has no room for all kinds."""
    if "robustness" not in metrics:
        return metrics
    found = metrics["robustness"]
    means = {severity: {"mean": kinds["mean"]} for severity, kinds in found.get("corruptions", {}).items()}
    return metrics | {"robustness": found | {"corruptions": means}}
