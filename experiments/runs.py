"""Pipeline runs. Each is a DVC experiment with a name that tells its parameters."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from experiments.copies import cache_folder, run_in, working_copy
from experiments.errors import RunError
from experiments.git import git
from experiments.snapshot import Snapshot
from sglp.files import new_folder

# Runs that ended before the last stage are not results, so `dvc exp show` need not list them.
FINISHED, PARTIAL = "refs/exps", "refs/sglp"
Targets = str | Sequence[str] | None


def run(
    params: dict[str, object],
    *,
    target: Targets = None,
    snapshot: Snapshot | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Run the pipeline without changing the workspace or its params.yaml.

    An earlier run with the same parameters is reused, and so are stages with results in DVC's cache.

    Args:
        params: values by key, as for ``dvc exp run -S``: "k", "score.batches", "models/NAME.yaml:finetune.epochs".
        target: the last stage to run, or several, or None for all stages.
        snapshot: the project's files, or None for their present state.
        environment: variables for stages, such as CUDA_VISIBLE_DEVICES.

    Returns:
        The experiment's name, which `dvc exp show` lists if all stages ran.

    Raises:
        RunError: a parameter does not exist, or a stage failed; the message is the stage's own.
    """
    snapshot = snapshot or Snapshot.take()
    name = name_of(params, target=target, snapshot=snapshot)
    if is_whole(name, snapshot):
        return name
    with working_copy(snapshot, snapshot.texts(params)) as copy:
        run_in(copy, name, _targets(target), environment or {})
        source = _refs(FINISHED, snapshot.baseline) + name
        destination = _refs(PARTIAL if target else FINISHED, snapshot.baseline) + name
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
        git(snapshot.root, "fetch", *options, str(copy), f"+{source}:{destination}")
        git(copy, "update-ref", "-d", source)
    return name


def name_of(params: dict[str, object], *, target: Targets = None, snapshot: Snapshot | None = None) -> str:
    """Return the name of a run: its parameters, then a hash of the parameter files, targets and uncommitted code.

    Values that params.yaml has anyway do not change the hash. If a run with this hash exists, its name is returned.
    """
    snapshot = snapshot or Snapshot.take()
    name = snapshot.name(params, _targets(target))
    return next((other for other in _commits(snapshot.baseline) if identity(other) == identity(name)), name)


def identity(name: str) -> str:
    """Return the hash in a run's name, which is the same however its parameters were given."""
    return name.rpartition("-")[2]


def is_whole(name: str, snapshot: Snapshot) -> bool:
    """Check that a run exists and that DVC's cache, which may have been cleaned or replaced, has all its outputs."""
    if name not in _commits(snapshot.baseline):
        return False
    cache = cache_folder(snapshot.root) / "files/md5"
    return all((cache / md5[:2] / md5[2:]).exists() for md5 in _checksums(name, snapshot.baseline, "outs").values())


def checksums(name: str, baseline: str = "HEAD") -> dict[str, str]:
    """Return DVC's checksums of the inputs and outputs of an experiment's stages, by path.

    Raises:
        RunError: the experiment does not exist.
    """
    return _checksums(name, baseline, "deps", "outs")


def read(name: str, path: str, baseline: str = "HEAD") -> str:
    """Return the text of an experiment's parameter file or output without checking it out.

    Raises:
        RunError: the experiment or the file does not exist.
    """
    try:
        return _files(Path.cwd(), _commit(name, baseline)).read_text(path, encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"the experiment {name} does not have {path}, or DVC's cache has lost it") from error


def fetch(name: str, path: str, folder: str | Path, baseline: str = "HEAD") -> None:
    """Copy an output folder of an experiment; `folder` appears complete or not at all.

    Raises:
        RunError: the experiment or the output folder does not exist.
    """
    files = _files(Path.cwd(), _commit(name, baseline))
    if not files.isdir(path):
        raise RunError(f"the experiment {name} does not have a folder {path}")
    with new_folder(folder) as new:
        new.rmdir()
        files.get(path, str(new), recursive=True)


def _targets(target: Targets) -> list[str]:
    return [target] if isinstance(target, str) else list(target or [])


def _commit(name: str, baseline: str) -> str:
    commits = _commits(git(Path.cwd(), "rev-parse", baseline))
    if name not in commits:
        raise RunError(f"there is no experiment {name} on {baseline}: 'dvc exp show' lists the experiments")
    return commits[name]


def _commits(baseline: str) -> dict[str, str]:
    """Return the commits of finished and partial runs on a baseline by their names."""
    prefixes = [_refs(namespace, baseline) for namespace in (FINISHED, PARTIAL)]
    lines = git(Path.cwd(), "for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", *prefixes).splitlines()
    return dict(line.split() for line in lines)


def _refs(namespace: str, baseline: str) -> str:
    """Return the prefix of git references under which DVC keeps a commit's experiments."""
    return f"{namespace}/{baseline[:2]}/{baseline[2:]}/"


def _checksums(name: str, baseline: str, *kinds: str) -> dict[str, str]:
    """Return the checksums of stages' "deps" or "outs" by path."""
    stages = _lock(Path.cwd(), _commit(name, baseline))["stages"].values()
    return {entry["path"]: entry["md5"] for stage in stages for kind in kinds for entry in stage.get(kind, [])}


@cache
def _lock(root: Path, commit: str) -> dict:
    return yaml.load(git(root, "show", f"{commit}:dvc.lock"), yaml.CSafeLoader)  # ten times as fast as ruamel.yaml


@cache
def _files(root: Path, commit: str) -> Any:
    from dvc.api import DVCFileSystem  # takes half a second to import

    return DVCFileSystem(str(root), rev=commit)
