"""The tables of docs/results.md: settings on held-out and on test samples, side by side."""

from experiments.cells import amount, with_spread
from experiments.outcomes import Comparison
from experiments.page import cost_of
from experiments.settings import Setting, begins
from experiments.statistics import spread
from experiments.tables import Table, also_measured, dense_networks, metrics
from stages.support.outcome import ranges

WORDS = {"heldout": "held out", "test": "test"}


def rows(found: dict[str, Comparison]) -> Table:
    """The table of a model: its settings, the best on held-out samples first.

    Args:
        found: what was measured on held-out samples, on the test split, or on both.
    """
    settings = {split: {_question(setting): setting for setting in one.settings} for split, one in found.items()}
    names = dict.fromkeys(key for one in settings.values() for key in one)
    first, last = next(iter(found)), list(found)[-1]
    quality, dense = found[first].quality, found[first].dense
    columns = ["setting", "runs", *(f"{quality.label}, {WORDS[split]}" for split in found)]
    columns += [f"against {what}, {WORDS[last]}" for what in ("random", "the best")]
    columns += [f"before tuning, {WORDS[first]}", "MACs", "parameters", "passes", "layers that go (seed 0)"]
    cells = ["dense network", "", *(dense_networks(one, one.quality) for one in found.values())]
    lines = [[*cells, "", "", "", amount(_macs(dense)), amount(dense["params"]), "", ""]]
    for name in names:
        here = {split: of[name] for split, of in settings.items() if name in of}
        setting = next(iter(here.values()))
        counts = [len(here[split].records) if split in here else 0 for split in found]
        cells = [setting.label, " / ".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))]
        cells += [with_spread(one.quality, one.spread(here[s])) if s in here else "" for s, one in found.items()]
        cells += _against(found[last], here[last]) if last in here else ["", ""]
        cells.append(with_spread(quality, found[first].spread(here[first], "pruned")) if first in here else "")
        sizes = [(_macs(one.metrics["finetuned"]), one.metrics["finetuned"]["params"]) for one in setting.records]
        macs, params = (spread(values).mean for values in zip(*sizes, strict=True))
        cells += [f"{100 * macs / _macs(dense):.1f} %", f"{100 * params / dense['params']:.1f} %"]
        lines.append([*cells, _passes(setting), ranges(setting.records[0].removed)])
    return Table(columns, lines)


def robustness(found: dict[str, Comparison]) -> Table:
    """The table of a model under attack and corruption, where all its networks were; it is that of the last samples."""
    last = list(found.values())[-1]
    keys = [key for key in also_measured(last) if key.startswith("robustness.")]
    table = metrics(last, [key for key in keys if all(key in record.metrics["finetuned"] for record in last.records)])
    return Table(table.columns[1:], [row[1:] for row in table.rows])  # without the place, which rows of a page show


def _question(setting: Setting) -> str:
    """What tells settings of one split from each other, and is the same in the other."""
    return repr(sorted((k, v) for k, v in setting.dials.items() if not begins(k, ("workload.data", "workload.files"))))


def _macs(metrics: dict) -> float:
    return metrics[cost_of(metrics)[0]]


def _against(found: Comparison, setting: Setting) -> list[str]:
    """How much better than random layers, and than the best setting, of those that keep as many layers.

    Differences are those of the same seed, which draws the samples that networks are tuned with, and of the same dense
    network: their mean, its standard error, and over how many seeds.
    """
    same = [other for other in found.settings if other.dials["prune_ratio"] == setting.dials["prune_ratio"]]
    chance = [other for other in same if other.dials["method"] == "random"]
    return [_difference(found, setting, other) for other in (*(chance[:1] or [setting]), same[0])]


def _difference(found: Comparison, setting: Setting, other: Setting) -> str:
    change = None if setting is other else found.difference(setting, other)
    if change is None:
        return ""
    scale = 100 if found.quality.share else 1
    error = "" if change.error is None else f" ± {scale * change.error:.2f}"
    return f"{scale * change.mean:+.2f}{error} ({change.n})"


def _passes(setting: Setting) -> str:
    """Mean passes, forward and backward."""
    costs = [record.cost for record in setting.records if record.cost]
    if not costs:
        return ""
    forward, backward = (spread([cost[f"{kind}_passes"] for cost in costs]).mean for kind in ("forward", "backward"))
    return f"{forward:.0f} + {backward:.0f}"
