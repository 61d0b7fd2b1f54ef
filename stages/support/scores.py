"""data/scores.csv: what the method scored, a set of layers or a single layer a row."""

from collections.abc import Sequence

from sglp.scores import LayerScore, SetScore
from stages.support.tables import read_rows, write_rows

Scores = Sequence[SetScore] | Sequence[LayerScore]

SETS = ("segment", "kept", "score", "search", "best")
LAYERS = ("segment", "layer", "score", "search", "kept")


def write_scores(path: str, scores: Scores) -> None:
    """Write the table; its columns say whether sets or layers were scored."""
    if any(isinstance(row, LayerScore) for row in scores):
        rows = ((row.segment, row.layer, repr(row.score), row.search, int(row.kept)) for row in scores)
        write_rows(path, LAYERS, rows)
    else:
        rows = (
            (row.segment, " ".join(map(str, row.kept)), repr(row.score), row.search, int(row.best)) for row in scores
        )
        write_rows(path, SETS, rows)


def read_scores(path: str) -> Scores:
    """Read the table."""
    return scores_of(read_rows(path))


def scores_of(rows: Sequence[dict[str, str]]) -> Scores:
    """The scores in rows of the table."""
    if rows and "layer" in rows[0]:
        return [
            LayerScore(int(row["segment"]), int(row["layer"]), float(row["score"]), row["search"], row["kept"] == "1")
            for row in rows
        ]
    return [
        SetScore(
            int(row["segment"]),
            tuple(map(int, row["kept"].split())),
            float(row["score"]),
            row["search"],
            row["best"] == "1",
        )
        for row in rows
    ]
