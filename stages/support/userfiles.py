"""The user's files: located by the path in the workload, verified by the sha256."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from sglp.files import new_file
from stages.support.params import ParameterError, read_yaml, workload_path


def verified_path(model: str, name: str, sha256: str | None) -> str | None:
    """Return the path of one of a workload's files after its content was verified; None if no file is declared.

    Args:
        model: the name of the workload.
        name: the key of the file ("weights", "train", "test", "tasks", "code").
        sha256: the checksum that the stage depends on.

    Raises:
        ParameterError: the file does not exist, has no declared checksum, or has a different one.
    """
    source = workload_path(model)
    path = declared_file(source, name, read_yaml(source)["files"][name] | {"sha256": sha256})
    if path is None:
        return None
    actual = checksum(path)
    if actual != sha256:
        raise ParameterError(
            f"{source}: {path} has the sha256 {actual}, but files.{name}.sha256={sha256}: the file was replaced or is "
            f"damaged; if it is the right file, run 'python -m tools.checksums {source}'"
        )
    return str(path)


def declared_file(source: Path, name: str, file: dict) -> Path | None:
    """Return the path of one of a workload's files without reading its content; None if no file is declared.

    Args:
        source: the workload's YAML file, for error messages.
        name: the key of the file.
        file: its "path" and "sha256".

    Raises:
        ParameterError: the file does not exist, or has no declared checksum.
    """
    path, sha256 = file["path"], file["sha256"]
    if path is None:
        if sha256 is not None:
            raise ParameterError(
                f"{source}: files.{name} has a sha256 but no path: set files.{name}.path to the file or folder"
            )
        return None
    resolved = resolve_path(path)
    if resolved is None:
        raise ParameterError(f"{source}: files.{name}.path={path} does not exist: correct the path")
    if sha256 is None:
        raise ParameterError(f"{source}: files.{name}.sha256 is not set: run 'python -m tools.checksums {source}'")
    return resolved


def resolve_path(path: str) -> Path | None:
    """Resolve the path of a file or folder, relative to the current folder or else to the project's folder."""
    return next((p for p in (Path.cwd() / path, project() / path) if p.exists()), None)


def project() -> Path:
    """Return the project's folder, also if the stage runs in one of DVC's copies of it, below .dvc/tmp/exps."""
    current = Path.cwd()
    return next((p.parent for p in (current, *current.parents) if p.name == ".dvc"), current)


def checksum(path: Path) -> str:
    """Return the sha256 of a file, or of the sorted relative paths and checksums of a folder's files.

    Links are followed.

    Raises:
        ParameterError: the folder contains no files.
    """
    if path.is_file():
        return _file_checksum(path)
    files = sorted(p for p in _walk(path) if p.is_file() and "__pycache__" not in p.parts)
    if not files:
        raise ParameterError(f"{path} is a folder without files: add the files, or correct the path")
    stats = [(p.relative_to(path).as_posix(), *_stat(p)) for p in files]
    # Reading a large folder can take longer than the stage, so the checksum is cached until a file changes.
    key = hashlib.sha256(json.dumps([str(path.resolve()), stats]).encode()).hexdigest()
    cached = user_cache_path("sglp") / "checksums" / key
    if cached.is_file():
        return cached.read_text(encoding="utf-8")
    digest = hashlib.sha256()
    for file, (name, *_) in zip(files, stats, strict=True):
        digest.update(f"{name}\0{_file_checksum(file)}\n".encode())
    with new_file(cached) as new:
        new.write_text(digest.hexdigest(), encoding="utf-8")
    return digest.hexdigest()


def _walk(path: Path) -> Iterator[Path]:
    """Yield all files below a folder, including those in linked folders."""
    for folder, folders, names in os.walk(path, followlinks=True):
        yield from (Path(folder, name) for name in names)
        real = Path(folder).resolve()
        folders[:] = [name for name in folders if not real.is_relative_to((real / name).resolve())]  # no loops


def _stat(path: Path) -> tuple[int, int, int, int]:
    """Return file attributes that change when a file is replaced, even if its modification time is kept."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
