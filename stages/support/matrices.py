"""Read and write matrices of layers as rows (row, column, value), which DVC can plot as heat maps."""

import numpy as np
from numpy.typing import ArrayLike

from stages.support.tables import read_rows, write_rows

ERRORS = "data/reconstruction_errors.csv"


def write_similarity(path: str, similarity: ArrayLike) -> None:
    """Write a matrix without rounding."""
    values = np.asarray(similarity)
    _write(path, values, "similarity", np.ones_like(values, dtype=bool))


def read_similarity(path: str) -> np.ndarray:
    """Read the matrix that `write_similarity` wrote."""
    values = np.array([float(row["similarity"]) for row in read_rows(path)])
    size = int(len(values) ** 0.5)
    return values.reshape(size, size)


def write_errors(errors: ArrayLike) -> None:
    """Write the finite entries of a matrix of reconstruction errors; nothing for an empty one."""
    values = np.asarray(errors, dtype=float)
    _write(ERRORS, values, "error", np.isfinite(values))


def read_errors(layers: int) -> np.ndarray | None:
    """Read the matrix [layers, layers] that `write_errors` wrote; None if it is empty."""
    rows = read_rows(ERRORS)
    if not rows:
        return None
    errors = np.full((layers, layers), np.inf)
    for row in rows:
        errors[int(row["row"]), int(row["column"])] = float(row["error"])
    return errors


def _write(path: str, matrix: np.ndarray, name: str, entries: np.ndarray) -> None:
    rows = ((i, j, repr(float(matrix[i, j]))) for i, j in zip(*np.nonzero(entries), strict=True)) if matrix.size else ()
    write_rows(path, ("row", "column", name), rows)
