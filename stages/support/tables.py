"""Read and write small tables that stages exchange, with Python's csv: pandas takes a second to import."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sglp.files import new_file


def write_rows(path: str, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file."""
    with new_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_rows(path: str) -> list[dict[str, str]]:
    """Read a CSV file; all values are text."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_json(path: str, content: Any) -> None:
    """Write JSON; equal content gives equal bytes."""
    with new_file(path) as new:
        new.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str) -> Any:
    """Read JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
