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

from experiments import runs
from experiments.foresight import OF_THE_DENSE, SAMPLES, table
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.ledger import Ledger
from experiments.outcomes import Comparison, compare
from experiments.records import Record, record_of
from experiments.results_tables import WORDS, robustness, rows
from experiments.settings import begins
from experiments.snapshot import Snapshot, parsed
from experiments.sweep import add_workers, alone, side_by_side
from sglp.errors import SGLPError
from sglp.files import new_file
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
    content = parsed(WHAT.read_text(encoding="utf-8"), str(WHAT))
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
            if part.get("foresight"):
                _check_dense(dials)
        _check_held_out(points)
        found.append(Part(part["title"], part["text"], points, part.get("foresight", False)))
    return found


def _check_held_out(points: dict[str, dict[str, dict]]) -> None:
    """Refuse what would be measured on test samples and called held out."""
    of_test = {runs.identity(name) for name in points.get("test", ())}
    for name, dials in points.get("heldout", {}).items():
        if runs.identity(name) in of_test:
            raise RunError(
                f"{WHAT}: no sample of {dials['model']} is held out, as its dials under 'heldout' are of other "
                "workloads: say 'splits: [test]' in its part"
            )


def _check_dense(points: Sequence[dict]) -> None:
    """Refuse other dense networks where criteria are asked about that of a workload as it stands."""
    for dial in dict.fromkeys(dial for point in points for dial in point):
        if begins(f"workload.{dial.rpartition(':')[2]}", OF_THE_DENSE):
            raise RunError(
                f"{WHAT}: {dial} makes another dense network, which foresight does not ask: leave it out there"
            )


def compared(part: Part, records: dict[str, Record]) -> dict[str, dict[str, Comparison]]:
    """The runs of a part that there are, by their model and the split that they were measured on.

    Args:
        part: of the page.
        records: by `runs.identity`, as other parts may have given a run its name.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for split, points in part.points.items():
        # Grids may meet: a run that has two names counts once.
        for record in (records[one] for one in dict.fromkeys(map(runs.identity, points)) if one in records):
            groups.setdefault(record.dials["model"], {}).setdefault(split, []).append(record)
    return {model: {split: compare(of) for split, of in splits.items()} for model, splits in groups.items()}


def write(found: list[Part], snapshot: Snapshot) -> None:
    """Write the page of what is known by now."""
    ledger, asked = Ledger(), _all(found)
    records = ledger.records(asked, snapshot)
    sections = []
    for part in found:
        tables, foresight, judged_by = {}, None, ""
        for model, splits in compared(part, records).items():
            tables[model] = [one for one in (rows(splits), robustness(splits)) if one.rows]
            if part.foresight:
                split, first = next(iter(splits.items()))
                foresight, judged_by = table(first, snapshot), WORDS[split]
        section = {"title": part.title, "text": part.text, "missing": _missing(part, records), "tables": tables}
        sections.append(section | {"foresight": foresight, "judged_by": judged_by})
    content = {"sections": sections, "commits": ledger.commits(asked), "samples": SAMPLES}
    text = render(Path(__file__).with_name("results.md.jinja"), content)
    with new_file(PAGE) as new:
        new.write_text(text, encoding="utf-8")


def _missing(part: Part, records: dict[str, Record]) -> int:
    return len({runs.identity(name) for points in part.points.values() for name in points} - records.keys())


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


def _check_committed(points: Sequence[dict], now: Snapshot, snapshot: Snapshot) -> None:
    """Refuse workloads that were edited: who wrote the checksums of files into one wants them to count."""
    for model in sorted({point["model"] for point in points}):
        path = f"models/{model}.yaml"
        if now.read(path) != snapshot.read(path):
            raise RunError(
                f"{path} has changes that are not committed, and only what is committed is measured: commit them, or "
                "undo them by 'git checkout'"
            )


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
        now = Snapshot.take()
        snapshot = now.committed()  # each line of the ledger says which commit measured it
        found, ledger = parts(snapshot), Ledger()
        splits = arguments.split or SPLITS
        missing = [dials for name, dials in _all(found, splits).items() if name not in ledger]
        _check_committed(missing, now, snapshot)
        check(missing, snapshot)
        with alone():
            for asked in _steps(found, splits):
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
