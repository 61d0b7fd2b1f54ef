"""The user's files: found by their path in the workload, trusted by their sha256."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from sglp.files import new_file
from stages.support.params import ParameterError, read_yaml, workload_path


def verified_path(model: str, name: str, sha256: str | None) -> str | None:
    """The path of one of a workload's files, after its content was checked; None where there is none.

    Args:
        model: the workload.
        name: which of its files ("weights", "train", "test", "tasks", "code").
        sha256: the checksum that the stage depends on.

    Raises:
        ParameterError: the file is not there, has no checksum, or another one.
    """
    source = workload_path(model)
    found = declared_file(source, name, read_yaml(source)["files"][name] | {"sha256": sha256})
    if found is None:
        return None
    actual = checksum(found)
    if actual != sha256:
        raise ParameterError(
            f"{source}: {found} has the sha256 {actual}, but files.{name}.sha256={sha256}: it is another file or a "
            f"broken one; if it is right, run 'python -m tools.checksums {source}'"
        )
    return str(found)


def declared_file(source: Path, name: str, file: dict) -> Path | None:
    """What `verified_path` finds, its content not read.

    Args:
        source: the workload's file, for the error.
        name: which of its files.
        file: its "path" and "sha256".

    Raises:
        ParameterError: the file is not there, or has no checksum.
    """
    path, sha256 = file["path"], file["sha256"]
    if path is None:
        if sha256 is not None:
            raise ParameterError(f"{source}: files.{name} has a sha256 but no path: write where the file is")
        return None
    found = resolve_path(path)
    if found is None:
        raise ParameterError(f"{source}: files.{name}.path={path} is not there")
    if sha256 is None:
        raise ParameterError(f"{source}: files.{name}.sha256 is empty: run 'python -m tools.checksums {source}'")
    return found


def resolve_path(path: str) -> Path | None:
    """A file or folder, from the folder that the stage runs in or the project's."""
    return next((p for p in (Path.cwd() / path, project() / path) if p.exists()), None)


def project() -> Path:
    """The project's folder; DVC's copies of it for experiments, in which stages run, lie in it below .dvc/tmp/exps."""
    here = Path.cwd()
    return next((p.parent for p in (here, *here.parents) if p.name == ".dvc"), here)


def checksum(path: Path) -> str:
    """The sha256 of a file, or of a folder: of its files' relative paths and checksums, in order; links are followed.

    Raises:
        ParameterError: the folder holds no file.
    """
    if path.is_file():
        return _of_file(path)
    files = sorted(p for p in _inside(path) if p.is_file() and "__pycache__" not in p.parts)
    if not files:
        raise ParameterError(f"{path} is a folder without a file: its checksum would say nothing")
    stats = [(p.relative_to(path).as_posix(), *_touched(p)) for p in files]
    # Reading a large folder for every stage would take longer than the stage: as long as no file in it was touched,
    # its checksum is the one that was read last.
    key = hashlib.sha256(json.dumps([str(path.resolve()), stats]).encode()).hexdigest()
    known = user_cache_path("sglp") / "checksums" / key
    if known.is_file():
        return known.read_text(encoding="utf-8")
    digest = hashlib.sha256()
    for file, (name, *_) in zip(files, stats, strict=True):
        digest.update(f"{name}\0{_of_file(file)}\n".encode())
    with new_file(known) as new:
        new.write_text(digest.hexdigest(), encoding="utf-8")
    return digest.hexdigest()


def _inside(path: Path) -> Iterator[Path]:
    """All files below a folder, in folders that it links to as well."""
    for folder, folders, names in os.walk(path, followlinks=True):
        yield from (Path(folder, name) for name in names)
        real = Path(folder).resolve()
        folders[:] = [name for name in folders if not real.is_relative_to((real / name).resolve())]  # a link back up


def _touched(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is written or replaced, even with its old time of modification."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
