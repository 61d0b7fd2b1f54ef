"""Read and write data/scores.csv: one row per scored set of layers, or per scored layer."""

from collections.abc import Sequence

from sglp.scores import LayerScore, SetScore
from stages.support.tables import read_rows, write_rows

Scores = Sequence[SetScore] | Sequence[LayerScore]

SETS = ("segment", "kept", "score", "search", "best")
LAYERS = ("segment", "layer", "score", "search", "kept")


def write_scores(path: str, scores: Scores) -> None:
    """Write scores as a CSV table; its columns depend on whether sets or layers were scored."""
    columns = LAYERS if any(isinstance(score, LayerScore) for score in scores) else SETS
    write_rows(path, columns, map(_row, scores))


def _row(score: SetScore | LayerScore) -> tuple:
    if isinstance(score, LayerScore):
        return score.segment, score.layer, repr(score.score), score.search, int(score.kept)
    return score.segment, " ".join(map(str, score.kept)), repr(score.score), score.search, int(score.best)


def read_scores(path: str) -> Scores:
    """Read the scores that `write_scores` wrote."""
    return scores_of(read_rows(path))


def scores_of(rows: Sequence[dict[str, str]]) -> Scores:
    """Convert rows of the CSV table to scores."""
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
