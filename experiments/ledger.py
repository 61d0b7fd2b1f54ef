"""docs/results.jsonl: the outcome of runs, a line each, kept with the project.

Experiments and DVC's cache belong to a clone, and experiments to a commit; figures that took hours outlast both. A
line is identified by the hash of the run's parameters, and says which commit measured it: after a change of code that
changes figures, delete the lines that it concerns, and `make results` measures them again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.errors import RunError
from experiments.records import Record, params_of
from experiments.runs import identity
from experiments.snapshot import Snapshot
from sglp.files import new_file

LEDGER = Path("docs/results.jsonl")


class Ledger:
    """The lines of the file, by `experiments.runs.identity`."""

    def __init__(self) -> None:
        self._lines = _read()

    def __contains__(self, name: str) -> bool:
        return identity(name) in self._lines

    def add(self, records: Iterable[Record], commit: str) -> None:
        """Add the new runs of a commit to what the file has by now."""
        self._lines = _read()
        for record in records:
            line = {key: getattr(record, key) for key in ("removed", "metrics", "cost")}
            self._lines.setdefault(identity(record.name), {"run": record.name, "commit": commit[:7], **line})
        with new_file(LEDGER) as new:
            lines = sorted(self._lines.values(), key=lambda line: line["run"])
            new.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def records(self, points: Mapping[str, dict[str, Any]], snapshot: Snapshot) -> dict[str, Record]:
        """Return the runs that the file has, by identity.

        Args:
            points: changed parameters by the names of runs.
            snapshot: the project, whose files have the other parameters.
        """
        return {identity(name): self._record(name, params, snapshot) for name, params in points.items() if name in self}

    def commits(self, points: Iterable[str]) -> list[str]:
        """Return the commits that measured these runs."""
        return sorted({self._lines[identity(name)]["commit"] for name in points if name in self})

    def _record(self, name: str, params: dict[str, Any], snapshot: Snapshot) -> Record:
        line = self._lines[identity(name)]
        removed, metrics, cost = tuple(line["removed"]), line["metrics"], line["cost"]
        return Record(name, params_of(params, snapshot), [], [], [], removed, metrics, benchmark=None, cost=cost)


def _read() -> dict[str, dict[str, Any]]:
    text = LEDGER.read_text(encoding="utf-8") if LEDGER.exists() else ""
    lines = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunError(f"{LEDGER}: line {number} is not JSON: {line[:40]!r}; correct or delete it") from error
        lines[identity(content["run"])] = content
    return lines
