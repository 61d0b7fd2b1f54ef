"""Runs of the pipeline, each an experiment of DVC's with a name that says what was asked."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from experiments.copies import cache_folder, run_in, working_copy
from experiments.git import RunError, git
from experiments.snapshot import Snapshot
from sglp.files import new_folder

# Runs that ended before the last stage are no results: `dvc exp show` need not show them.
FINISHED, PARTIAL = "refs/exps", "refs/sglp"


def run(
    dials: dict[str, object],
    *,
    target: str | Sequence[str] | None = None,
    snapshot: Snapshot | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Run the pipeline; the workspace and its params.yaml stay as they are.

    What is known is not run again, and stages whose result is in DVC's cache are not either.

    Args:
        dials: values by key, as for ``dvc exp run -S``: "k", "score.batches", "models/NAME.yaml:finetune.epochs".
        target: the last stage that has to run, or several; None for all.
        snapshot: the project as it stood at some moment, by default now.
        environment: variables for stages, as CUDA_VISIBLE_DEVICES.

    Returns:
        The experiment's name; `dvc exp show` knows it, if all stages ran.

    Raises:
        RunError: a dial is no key, or a stage failed; the message is the stage's own.
    """
    snapshot = snapshot or Snapshot.take()
    name = name_of(dials, target=target, snapshot=snapshot)
    namespace = PARTIAL if target else FINISHED
    if name in _names(snapshot.root, namespace, snapshot.baseline) and is_whole(name, snapshot):
        return name
    with working_copy(snapshot, snapshot.texts(dials)) as copy:
        run_in(copy, name, _targets(target), environment or {})
        made, kept = (_ref(space, snapshot.baseline, name) for space in (FINISHED, namespace))
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
        git(snapshot.root, "fetch", *options, str(copy), f"+{made}:{kept}")
        git(copy, "update-ref", "-d", made)
    return name


def name_of(
    dials: dict[str, object], *, target: str | Sequence[str] | None = None, snapshot: Snapshot | None = None
) -> str:
    """The name of a run with these dials: readable, and a hash of its parameters and of code that is not committed.

    Two ways to say the same (a dial that is set to what params.yaml has anyway) get one name: that of the run that is
    known.
    """
    snapshot = snapshot or Snapshot.take()
    name = snapshot.name(dials, _targets(target))
    there = _names(snapshot.root, PARTIAL if target else FINISHED, snapshot.baseline)
    return next((other for other in there if identity(other) == identity(name)), name)


def identity(name: str) -> str:
    """What two names of one run have in common: the hash of its parameters and of code that is not committed."""
    return name.rpartition("-")[2]


def known(baseline: str = "HEAD") -> list[str]:
    """The names of the finished experiments on a commit."""
    root = Path.cwd()
    return _names(root, FINISHED, git(root, "rev-parse", baseline))


def is_whole(name: str, snapshot: Snapshot) -> bool:
    """Whether the cache has all that a run wrote: it may be another cache now, or have been cleaned."""
    cache = cache_folder(snapshot.root) / "files/md5"
    return all((cache / md5[:2] / md5[2:]).exists() for md5 in _made(name, snapshot.baseline).values())


def checksums(name: str, baseline: str = "HEAD") -> dict[str, str]:
    """The checksums of what an experiment's stages read and wrote, by path, as DVC has them.

    Raises:
        RunError: there is no such experiment.
    """
    return _listed(git(Path.cwd(), "show", f"{_commit(name, baseline)}:dvc.lock"))


def _listed(lock: str) -> dict[str, str]:
    found = re.findall(r"^\s+- path: (\S+)\n(?:\s+hash: md5\n)?\s+md5: (\S+)$", lock, flags=re.MULTILINE)
    return {path: checksum.strip("'") for path, checksum in found}


def _made(name: str, baseline: str) -> dict[str, str]:
    """The checksums of outputs alone."""
    lock = git(Path.cwd(), "show", f"{_commit(name, baseline)}:dvc.lock")
    return _listed("\n".join(re.findall(r"^    outs:\n((?:    [ -] .*\n?)+)", lock, flags=re.MULTILINE)))


def read(name: str, path: str, baseline: str = "HEAD") -> str:
    """A file of an experiment, a parameter file or an output, as text; nothing is checked out.

    Args:
        name: of the experiment.
        path: of the file.
        baseline: the commit that the experiment belongs to.

    Raises:
        RunError: there is no such experiment, or it has no such file.
    """
    try:
        return _files(Path.cwd(), _commit(name, baseline)).read_text(path, encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"the experiment {name} has no {path}, or DVC's cache has lost it") from error


def fetch(name: str, path: str, folder: str | Path, baseline: str = "HEAD") -> None:
    """Copy an output that is a folder; `folder` appears whole or not at all.

    Raises:
        RunError: there is no such experiment, or it has no such folder.
    """
    files = _files(Path.cwd(), _commit(name, baseline))
    if not files.isdir(path):
        raise RunError(f"the experiment {name} has no folder {path}")
    with new_folder(folder) as new:
        new.rmdir()
        files.get(path, str(new), recursive=True)


def _targets(target: str | Sequence[str] | None) -> list[str]:
    return [target] if isinstance(target, str) else list(target or [])


def _commit(name: str, baseline: str) -> str:
    root = Path.cwd()
    commit = git(root, "rev-parse", baseline)
    for namespace in (FINISHED, PARTIAL):
        found = git(root, "for-each-ref", "--format=%(objectname)", _ref(namespace, commit, name))
        if found:
            return found
    raise RunError(f"there is no experiment {name} on {baseline}: 'dvc exp show' lists those that there are")


@cache
def _files(root: Path, commit: str):
    from dvc.api import DVCFileSystem  # takes half a second, which not everyone needs

    return DVCFileSystem(str(root), rev=commit)


def _names(root: Path, namespace: str, baseline: str) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:lstrip=-1)", _ref(namespace, baseline, "")).split()


def _ref(namespace: str, baseline: str, name: str) -> str:
    """Where DVC keeps an experiment; with no name, the folder of all of them."""
    return f"{namespace}/{baseline[:2]}/{baseline[2:]}/{name}"
