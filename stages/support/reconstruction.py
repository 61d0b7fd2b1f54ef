"""What happened to the layers that were reconstructed: reports/reconstruction.csv, and a summary of it."""

from collections.abc import Iterable, Sequence
from math import fsum

from stages.support.tables import read_rows, write_rows

PATH = "reports/reconstruction.csv"
COLUMNS = ("layer", "target", "how", "before", "after", "kept")


def write_reconstructed(rows: Iterable[tuple]) -> None:
    """Write what happened to each layer; see `sglp.reconstruction.reconstruct.Reconstructed`."""
    write_rows(PATH, COLUMNS, ([repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows))


def read_reconstructed() -> list[dict]:
    """Read the rows that `write_reconstructed` wrote."""
    return [
        row | {"before": float(row["before"]), "after": float(row["after"]), "kept": row["kept"] == "True"}
        for row in read_rows(PATH)
    ]


def summary(rows: Sequence[dict]) -> str:
    """Describe the reconstruction in one sentence; "" if there was none."""
    if not rows:
        return ""
    changed = sum(row["kept"] for row in rows)
    before, after = (
        fsum(row["after" if row["kept"] and name == "after" else "before"] for row in rows) / len(rows)
        for name in ("before", "after")
    )
    ways = {"closed_form": "in closed form", "gradient": "by gradient"}
    used = [text for how, text in ways.items() if any(row["kept"] and row["how"] == how for row in rows)]
    return (
        f"{changed} of {len(rows)} layers from the first gap on were refitted to the dense network's activations"
        f"{' ' + ' and '.join(used) if used else ''}, without labels: the mean relative squared error on held-out "
        f"samples changed from {before:.3g} to {after:.3g}."
    )
