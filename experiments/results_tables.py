"""The tables of docs/results.md: settings on held-out and on test samples, side by side."""

from functools import partial
from typing import Any

import pandas as pd
from scipy.stats import sem

from experiments.cells import amount, with_spread
from experiments.outcomes import Comparison
from experiments.page import cost_of
from experiments.settings import Setting, within
from experiments.tables import Table, also_measured, dense_networks, metrics, table_of
from stages.support.outcome import ranges

WORDS = {"heldout": "held out", "test": "test"}


def rows(splits: dict[str, Comparison]) -> Table:
    """Make the table of a model's settings, the best on held-out samples first.

    Args:
        splits: the comparison on held-out samples, on the test split, or on both.
    """
    first, last = next(iter(splits)), list(splits)[-1]
    dense, label = splits[first].dense, splits[first].quality.label
    frames = {split: _columns(each, WORDS[split], dense) for split, each in splits.items()}
    # A setting has the columns of all splits; those that splits have in common are of the first split with the setting.
    table = pd.concat(frames.values()).groupby(level=0, sort=False).first()
    counts = table[[f"runs, {WORDS[split]}" for split in splits]].fillna(0).astype(int).astype(str)
    table["runs"] = counts.apply(lambda row: " / ".join(row if row.nunique() > 1 else row[:1]), axis=1)
    qualities = [f"{label}, {WORDS[split]}" for split in splits]
    columns = ["setting", "runs", *qualities]
    columns += [f"against {other}, {WORDS[last]}" for other in ("random", "the best")]
    columns += [f"{network}, {WORDS[first]}" for network in ("pruned", "reconstructed")]
    columns += ["MACs", "parameters", "passes", "removed layers (seed 0)"]
    cells = {"setting": "dense network", "MACs": amount(_macs(dense)), "parameters": amount(dense["params"])}
    cells |= {name: dense_networks(each, each.quality) for name, each in zip(qualities, splits.values(), strict=True)}
    table = pd.concat([pd.DataFrame([cells]), table]).reindex(columns=columns).astype(object).fillna("")
    return Table(columns, table.to_numpy().tolist())


def robustness(splits: dict[str, Comparison]) -> Table:
    """Make the table under attacks and corruptions, of the last split, with the metrics that all of its runs have."""
    last = list(splits.values())[-1]
    keys = [key for key in also_measured(last) if key.startswith("robustness.")]
    return table_of(metrics(last, [key for key in keys if last.runs[f"finetuned.{key}"].notna().all()]))


def _columns(comparison: Comparison, split: str, dense: dict[str, Any]) -> pd.DataFrame:
    """Return the cells of a split's settings; the index identifies a setting on every split."""
    show, groups = partial(with_spread, comparison.quality), comparison.runs.groupby("#")
    table = pd.DataFrame(
        {
            "setting": comparison.points["setting"].drop(0),
            f"runs, {split}": groups.size(),
            f"{comparison.quality.label}, {split}": comparison.qualities().apply(show),
            **{f"{name}, {split}": comparison.qualities(name).apply(show) for name in ("pruned", "reconstructed")},
        }
    )
    for label, key in (("MACs", cost_of(dense)[0]), ("parameters", "params")):
        table[label] = (100 * groups[f"finetuned.{key}"].mean() / dense[key]).map("{:.1f} %".format)
    if "cost.forward_passes" in comparison.runs:
        passes = groups[["cost.forward_passes", "cost.backward_passes"]].mean().dropna()
        texts = [f"{forward:.0f} + {backward:.0f}" for _, forward, backward in passes.itertuples()]
        table["passes"] = pd.Series(texts, passes.index, dtype=object)
    table["removed layers (seed 0)"] = [ranges(setting.records[0].removed) for setting in comparison.settings]
    against = [_against(comparison, number) for number in table.index]
    table[[f"against {other}, {split}" for other in ("random", "the best")]] = against
    return table.set_axis([_identity(setting) for setting in comparison.settings])


def _identity(setting: Setting) -> str:
    """Return what distinguishes the settings of one split and is equal on the other split."""
    return repr(sorted((k, v) for k, v in setting.params.items() if not within(k, ("workload.data", "workload.files"))))


def _macs(metrics: dict[str, Any]) -> float:
    return metrics[cost_of(metrics)[0]]


def _against(comparison: Comparison, number: int) -> list[str]:
    """Compare a setting with random layers and with the best setting, of those that keep as many layers.

    Differences are taken between runs with the same seed, which draws the samples of fine-tuning, and the same dense
    network: their mean, its standard error, and the number of seeds.
    """
    ratios = {i: setting.params.get("prune_ratio") for i, setting in enumerate(comparison.settings, 1)}
    same = [i for i, ratio in ratios.items() if ratio == ratios[number]]
    random = [i for i in same if comparison.settings[i - 1].params["method"] == "random"]
    return [_difference(comparison, number, other) for other in (*(random[:1] or [number]), same[0])]


def _difference(comparison: Comparison, number: int, other: int) -> str:
    change = comparison.difference(number, other) * (100 if comparison.quality.share else 1)
    if number == other or change.empty:
        return ""
    error = f" ± {float(sem(change)):.2f}" if len(change) > 1 else ""
    return f"{change.mean():+.2f}{error} ({len(change)})"
