"""docs/results.jsonl: what runs came to, a line each, kept with the project.

Experiments and DVC's cache belong to a clone, and experiments to a commit; figures that took hours outlast both. A
line's run is known by the hash of its parameters, and says which commit measured it: who changes code in a way that
moves figures deletes the lines that it moves, and `make results` measures them anew.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from experiments.git import RunError
from experiments.records import Record, asked_of
from experiments.runs import identity
from experiments.snapshot import Snapshot
from sglp.files import new_file

LEDGER = Path("docs/results.jsonl")


class Ledger:
    """The lines that there are, by `experiments.runs.identity`."""

    def __init__(self):
        self._lines = _read()

    def __contains__(self, name: str) -> bool:
        return identity(name) in self._lines

    def add(self, records: Iterable[Record], commit: str) -> None:
        """Write down what is new of the runs of a commit, beside what the file has by now."""
        self._lines = _read()
        for record in records:
            if record.name not in self:
                self._lines[identity(record.name)] = {
                    "run": record.name,
                    "commit": commit[:7],
                    "removed": record.removed,
                    "metrics": record.metrics,
                    "cost": record.cost,
                }
        with new_file(LEDGER) as new:
            lines = sorted(self._lines.values(), key=lambda line: line["run"])
            new.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def records(self, points: Mapping[str, dict], snapshot: Snapshot) -> dict[str, Record]:
        """The runs that are known of those that are asked for, by their identities.

        Args:
            points: dials by the names of runs.
            snapshot: the project, whose files say what else was asked.
        """
        return {identity(name): self._record(name, dials, snapshot) for name, dials in points.items() if name in self}

    def commits(self, points: Iterable[str]) -> list[str]:
        """The commits that measured these runs."""
        return sorted({self._lines[identity(name)]["commit"] for name in points if name in self})

    def _record(self, name: str, dials: dict, snapshot: Snapshot) -> Record:
        line = self._lines[identity(name)]
        return Record(
            name=name,
            dials=asked_of(dials, snapshot),
            layers=[],
            segments=[],
            scores=[],
            removed=tuple(line["removed"]),
            metrics=line["metrics"],
            benchmark=None,
            cost=line["cost"],
        )


def _read() -> dict[str, dict]:
    text = LEDGER.read_text(encoding="utf-8") if LEDGER.exists() else ""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunError(f"{LEDGER}: line {number} is no JSON, but {line[:40]!r}: mend or delete it") from error
        found[identity(content["run"])] = content
    return found
