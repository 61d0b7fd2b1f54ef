"""docs/results.md: every part of experiments/results.yaml, run and written down. ``python -m experiments.results``.

Runs that docs/results.jsonl knows are not run again, and both are written after every step: it can be killed and
started again, in another clone too.
Defaults are chosen by ``python -m experiments.results heldout``, on samples held out of training; the test split is for
the table of what was chosen. Where both are asked for, a network is judged by both as soon as it is there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from experiments import runs
from experiments.cells import amount, number, with_spread
from experiments.foresight import SAMPLES, table
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.ledger import Ledger
from experiments.outcomes import Comparison, compare
from experiments.page import cost_of
from experiments.records import Record, record_of
from experiments.settings import Setting, begins
from experiments.snapshot import Snapshot
from experiments.statistics import spread
from experiments.sweep import add_workers, alone, side_by_side
from experiments.tables import Table
from sglp.errors import SGLPError
from sglp.files import new_file
from stages.support.outcome import ranges
from stages.support.pages import render

WHAT, PAGE = Path("experiments/results.yaml"), Path("docs/results.md")
SPLITS = ("heldout", "test")


class Part(NamedTuple):
    """A section of the page.

    Attributes:
        title, text: of the section.
        points: for every split that it is measured on, the dials of its runs by their names.
        foresight: whether all criteria are asked about all plans.
    """

    title: str
    text: str
    points: dict[str, dict[str, dict]]
    foresight: bool = False


def parts(snapshot: Snapshot) -> list[Part]:
    """What results.yaml asks for."""
    content = YAML(typ="safe", pure=True).load(WHAT.read_text(encoding="utf-8"))
    found = []
    for part in content["parts"]:
        points, base = {}, content["base"] | part.get("base", {})
        for split in part.get("splits", SPLITS):
            further = content["heldout"] if split == "heldout" else {}
            # What a point is about comes first in its name.
            dials = [
                point | {key: value for key, value in base.items() if key not in point} | further
                for grid in part["grids"]
                for point in parse(grid.split())
            ]
            points[split] = {runs.name_of(one, snapshot=snapshot): one for one in dials}
        found.append(Part(part["title"], part["text"], points, part.get("foresight", False)))
    return found


def compared(part: Part, records: dict[str, Record]) -> dict[str, dict[str, Comparison]]:
    """The runs of a part that there are, by their model and the split that they were measured on.

    Args:
        part: of the page.
        records: by `runs.identity`, as other parts may have given a run its name.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for split, points in part.points.items():
        for record in (records[runs.identity(name)] for name in points if runs.identity(name) in records):
            groups.setdefault(record.dials["model"], {}).setdefault(split, []).append(record)
    return {model: {split: compare(of) for split, of in splits.items()} for model, splits in groups.items()}


def rows(found: dict[str, Comparison]) -> Table:
    """The table of a model: its settings, the best on held-out samples first.

    Args:
        found: what was measured on held-out samples, on the test split, or on both.
    """
    settings = {split: {_question(setting): setting for setting in one.settings} for split, one in found.items()}
    first, names = next(iter(found.values())), list(dict.fromkeys(key for one in settings.values() for key in one))
    last = list(found)[-1]
    columns = ["setting", "runs", *(f"{first.quality.label}, {_WORDS[split]}" for split in found)]
    columns += [f"against {what}, {_WORDS[last]}" for what in ("random", "the best")]
    columns += ["before tuning", "MACs", "parameters", "passes", "layers that go (seed 0)"]
    dense = ["dense network", "", *(number(one.quality, one.dense[one.quality.key]) for one in found.values())]
    lines = [[*dense, "", "", "", amount(_macs(first.dense)), amount(first.dense["params"]), "", ""]]
    for name in names:
        here = {split: of[name] for split, of in settings.items() if name in of}
        split, setting = next(iter(here.items()))
        cells = [setting.label, str(len(setting.records))]
        cells += [with_spread(one.quality, one.spread(here[s])) if s in here else "" for s, one in found.items()]
        cells += _against(found[last], here[last]) if last in here else ["", ""]
        cells.append(with_spread(first.quality, found[split].spread(setting, "pruned")))
        sizes = [(_macs(one.metrics["finetuned"]), one.metrics["finetuned"]["params"]) for one in setting.records]
        macs, params = (spread(values).mean for values in zip(*sizes, strict=True))
        cells += [f"{100 * macs / _macs(first.dense):.1f} %", f"{100 * params / first.dense['params']:.1f} %"]
        lines.append([*cells, _passes(setting), ranges(setting.records[0].removed)])
    return Table(columns, lines)


_WORDS = {"heldout": "held out", "test": "test"}


def _question(setting: Setting) -> str:
    """What tells settings of one split from each other, and is the same in the other."""
    return repr(sorted((k, v) for k, v in setting.dials.items() if not begins(k, ("workload.data", "workload.files"))))


def _macs(metrics: dict) -> float:
    return metrics[cost_of(metrics)[0]]


def _against(found: Comparison, setting: Setting) -> list[str]:
    """How much better than random layers, and than the best setting, of those that keep as many layers.

    Differences are those of the same seed, which draws the samples that networks are tuned with: their mean, its
    standard error, and over how many seeds.
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


def write(found: list[Part], snapshot: Snapshot) -> None:
    """Write the page of what is known by now."""
    ledger, asked = Ledger(), _all(found)
    records = ledger.records(asked, snapshot)
    sections = []
    for part in found:
        tables, foresight = {}, None
        for model, splits in compared(part, records).items():
            tables[model] = rows(splits)
            foresight = table(next(iter(splits.values())), snapshot) if part.foresight else None
        section = {"title": part.title, "text": part.text, "missing": _missing(part, records), "tables": tables}
        sections.append(section | {"foresight": foresight})
    content = {"sections": sections, "commits": ledger.commits(asked), "samples": SAMPLES}
    text = render(Path(__file__).with_name("results.md.jinja"), content)
    with new_file(PAGE) as new:
        new.write_text(text, encoding="utf-8")


def _missing(part: Part, records: dict[str, Record]) -> int:
    return sum(runs.identity(name) not in records for points in part.points.values() for name in points)


def _all(found: list[Part], splits: Sequence[str] = SPLITS) -> dict[str, dict]:
    """The dials of all runs by their names."""
    return {name: dials for part in found for split in splits for name, dials in part.points.get(split, {}).items()}


def _steps(found: list[Part], splits: Sequence[str]) -> list[dict[str, dict]]:
    """The runs seed by seed, part by part: what is killed has told something of everything."""
    steps: dict[tuple[int, int], list[tuple[int, str, dict]]] = {}
    for place, part in enumerate(found):
        for split in splits:
            for turn, (name, dials) in enumerate(part.points.get(split, {}).items()):
                steps.setdefault((dials.get("seed", 0), place), []).append((turn, name, dials))
    # One after the other what is asked of one network.
    in_order = (sorted(steps[key], key=lambda point: point[0]) for key in sorted(steps))
    return [{name: dials for _, name, dials in points} for points in in_order]


def _checked(made: dict[str, str] | RunError) -> dict[str, str]:
    """What a run wrote, if it did not fail."""
    if isinstance(made, RunError):
        raise made
    return made


def main() -> None:
    """Run what is not known, part by part."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results", description=__doc__)
    parser.add_argument("split", nargs="*", choices=[[], *SPLITS], help="only on these samples (default: both)")
    add_workers(parser)
    arguments = parser.parse_args()
    failures: dict[str, str] = {}
    try:
        snapshot = Snapshot.take().committed()  # each line of the ledger says which commit measured it
        found, ledger = parts(snapshot), Ledger()
        check((dials for name, dials in _all(found).items() if name not in ledger), snapshot)
        with alone():
            for asked in _steps(found, arguments.split or SPLITS):
                new = {name: dials for name, dials in asked.items() if name not in ledger}
                with closing(side_by_side(new, snapshot, arguments.workers)) as outcomes:
                    for name, made in outcomes:
                        try:
                            ledger.add([record_of(name, new[name], _checked(made), snapshot)], snapshot.baseline)
                        except SGLPError as error:
                            failures[name] = str(error)
                write(found, snapshot)
    except SGLPError as error:
        sys.exit(f"results: {error}")
    except KeyboardInterrupt:
        os._exit(130)  # what runs ends with this process, which would wait for it otherwise
    for name, why in failures.items():
        print(f"{name} failed: {why}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
