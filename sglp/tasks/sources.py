"""Open the data of a workload: a table of `datasets`, or a data-set class."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sglp.architecture import resolve
from sglp.errors import DataError, SGLPError, first_line
from sglp.tasks.schemas.workload import Source


def open_source(source: Source, arguments: dict, path: str | None, sha256: str | None, columns: list[str]):
    """Open a table with the given columns, or an object of the data-set class.

    Args:
        source: where the data come from.
        arguments: arguments of the split, for `load_dataset` (split, name) or for the class.
        path: the user's file or folder, or None.
        sha256: checksum of the file; `datasets` caches its tables under it, so that two files are never confused.
        columns: columns that the table must have.

    Raises:
        DataError: the data can't be read, or a column is missing.
    """
    name = name_of(source, path)
    with reading(name):
        if source.loader == "datasets":
            return _table(source, arguments, path, sha256, columns, name)
        make = resolve(source.loader)
        return make(path, **arguments) if path is not None else make(**arguments)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn any error of a data library into one sentence."""
    try:
        yield
    except SGLPError:
        raise
    except Exception as error:
        raise DataError(f"the data of {name} can't be read: {first_line(error)}") from error


def name_of(source: Source, path: str | None) -> str:
    """Return the name of the data for messages."""
    return path or source.name or source.loader


def _table(source: Source, arguments: dict, path: str | None, sha256: str | None, columns: list[str], name: str):
    import datasets

    if path is not None:
        # With an explicit split, no part of the path ("test", "val") is mistaken for the name of a split.
        files = {"train": f"{path}/**" if Path(path).is_dir() else path}
        arguments = {"split": "train", "data_files": files, **arguments}
        if sha256:
            arguments["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / sha256)
    if "split" not in arguments:
        raise DataError(f"data.train and data.test need the key split: which split of {name} should be read?")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(source.name, revision=source.revision, **arguments)
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{name} has no samples") from error
        raise
    for column in columns:
        if column not in table.column_names:
            raise DataError(f"{name} has no column {column!r}: it has {', '.join(table.column_names)}")
    return table
