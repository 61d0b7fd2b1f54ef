"""docs/results.md: every part of experiments/results.yaml, run and written down. ``python -m experiments.results``.

Runs in docs/results.jsonl are not run again, and both files are written after every step: the command can be killed
and started again, in another clone, too.
Defaults are chosen by ``python -m experiments.results heldout``, on samples held out of training; the test split is for
the table of what was chosen. With both, a network is evaluated on both as soon as it is ready.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments import runs
from experiments.errors import RunError
from experiments.foresight import DENSE_PARAMS, SAMPLES, table
from experiments.grid import check, parse
from experiments.ledger import Ledger
from experiments.outcomes import Comparison, compare
from experiments.records import Record, record_of
from experiments.results_tables import WORDS, robustness, rows
from experiments.settings import within
from experiments.snapshot import Snapshot
from experiments.sweep import add_workers, alone, side_by_side
from sglp.errors import SGLPError
from sglp.files import new_file
from sglp.pages import render

CONTENT, PAGE = Path("experiments/results.yaml"), Path("docs/results.md")
SPLITS = ("heldout", "test")
Points = dict[str, dict[str, Any]]  # the parameters that runs change, by the names of the runs


class Part(NamedTuple):
    """A section of the page.

    Attributes:
        title, text: of the section.
        points: the runs on every split.
        foresight: whether all criteria score all plans.
    """

    title: str
    text: str
    points: dict[str, Points]
    foresight: bool = False


def parts(snapshot: Snapshot) -> list[Part]:
    """Read results.yaml."""
    try:
        content = yaml.safe_load(CONTENT.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunError(f"{CONTENT} is not valid YAML: {' '.join(str(error).split())}") from error
    result = []
    for part in content["parts"]:
        base = content["base"] | part.get("base", {})
        # The parameters of the grid come first in a run's name.
        grid = [point for text in part["grids"] for point in parse(text.split())]
        grid = [point | {key: value for key, value in base.items() if key not in point} for point in grid]
        points = {}
        for split in part.get("splits", SPLITS):
            split_grid = [point | content["heldout"] for point in grid] if split == "heldout" else grid
            points[split] = {runs.name_of(point, snapshot=snapshot): point for point in split_grid}
        foresight = part.get("foresight", False)
        _check(points, foresight)
        result.append(Part(part["title"], part["text"], points, foresight))
    return result


def _check(points: dict[str, Points], foresight: bool) -> None:
    """Refuse runs on test samples under the name "heldout", and for foresight runs that change the dense network."""
    on_test = {runs.identity(name) for name in points.get("test", ())}
    for name, params in points.get("heldout", {}).items():
        if runs.identity(name) in on_test:
            raise RunError(
                f"{CONTENT}: no sample of {params['model']} is held out, as 'heldout' changes only other workloads: "
                "write 'splits: [test]' in this part"
            )
    for key in (key for split in points.values() for params in split.values() for key in params if foresight):
        if within(f"workload.{key.rpartition(':')[2]}", DENSE_PARAMS):
            raise RunError(f"{CONTENT}: {key} changes the dense network, but foresight scores the unchanged one")


def compared(part: Part, records: dict[str, Record]) -> dict[str, dict[str, Comparison]]:
    """Compare the known runs of a part, by their model and split.

    Args:
        part: a section of the page.
        records: by `runs.identity`, as another part may have named a run.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for split, points in part.points.items():
        # Grids may overlap: a run with two names counts once.
        for record in (records[key] for key in dict.fromkeys(map(runs.identity, points)) if key in records):
            groups.setdefault(record.params["model"], {}).setdefault(split, []).append(record)
    return {model: {split: compare(group) for split, group in splits.items()} for model, splits in groups.items()}


def write(sections: list[Part], snapshot: Snapshot) -> None:
    """Write the page of what is known by now."""
    ledger, points = Ledger(), _all(sections)
    records = ledger.records(points, snapshot)
    content: list[dict[str, Any]] = []
    for part in sections:
        models = compared(part, records)
        tables = {model: [t for t in (rows(splits), robustness(splits)) if t.rows] for model, splits in models.items()}
        section = {"title": part.title, "text": part.text, "missing": _missing(part, records), "tables": tables}
        content.append(section | {"foresight": None, "split": ""})
        for splits in models.values() if part.foresight else ():
            split, first = next(iter(splits.items()))
            content[-1] |= {"foresight": table(first, snapshot), "split": WORDS[split]}
    text = render(
        Path(__file__).with_name("results.md.jinja"),
        {"sections": content, "commits": ledger.commits(points), "samples": SAMPLES},
    )
    with new_file(PAGE) as new:
        new.write_text(text, encoding="utf-8")


def _missing(part: Part, records: dict[str, Record]) -> int:
    return len({runs.identity(name) for points in part.points.values() for name in points} - records.keys())


def _all(sections: list[Part], splits: Sequence[str] = SPLITS) -> Points:
    """Return the points of all parts."""
    return {name: point for part in sections for split in splits for name, point in part.points.get(split, {}).items()}


def _steps(sections: list[Part], splits: Sequence[str]) -> list[Points]:
    """Order the runs seed by seed, part by part: if killed, the command has measured something of every part.

    Within a step, the splits of one network follow each other.
    """
    points = [
        ((params.get("seed", 0), place, turn), name, params)
        for place, part in enumerate(sections)
        for split in splits
        for turn, (name, params) in enumerate(part.points.get(split, {}).items())
    ]
    points.sort(key=lambda point: point[0])
    return [{name: params for _, name, params in step} for _, step in groupby(points, key=lambda point: point[0][:2])]


def _check_committed(points: Iterable[dict[str, Any]], now: Snapshot, snapshot: Snapshot) -> None:
    """Refuse workloads with uncommitted changes, such as new checksums of files: they would not count."""
    for path in sorted({f"models/{point['model']}.yaml" for point in points}):
        if now.read(path) != snapshot.read(path):
            raise RunError(
                f"{path} has uncommitted changes, but only committed files are measured: commit them, or undo them "
                "with 'git checkout'"
            )


def main() -> None:
    """Run what is missing, part by part."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results", description=__doc__)
    parser.add_argument("split", nargs="*", choices=[[], *SPLITS], help="only on these samples (default: both)")
    add_workers(parser)
    arguments = parser.parse_args()
    failures: dict[str, str] = {}
    try:
        now = Snapshot.take()
        snapshot = now.committed()  # each line of the ledger names the commit that measured it
        sections, ledger = parts(snapshot), Ledger()
        splits = arguments.split or SPLITS
        missing = [params for name, params in _all(sections, splits).items() if name not in ledger]
        _check_committed(missing, now, snapshot)
        check(missing, snapshot)
        with alone():
            for step in _steps(sections, splits):
                new = {name: params for name, params in step.items() if name not in ledger}
                with closing(side_by_side(new, snapshot, arguments.workers)) as outcomes:
                    for name, outputs in outcomes:
                        try:
                            if isinstance(outputs, RunError):
                                raise outputs
                            ledger.add([record_of(name, new[name], outputs, snapshot)], snapshot.baseline)
                        except SGLPError as error:
                            failures[name] = str(error)
                write(sections, snapshot)
    except SGLPError as error:
        sys.exit(f"results: {error}")
    except KeyboardInterrupt:
        os._exit(130)  # running stages end with this process, which would otherwise wait for them
    for name, why in failures.items():
        print(f"{name} failed: {why}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
