"""A snapshot of the project's files, so that edits during a sweep do not affect its runs."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.errors import RunError
from experiments.git import git
from experiments.yaml_files import edit, parse, set_values

PARAMS = "params.yaml"
MAX_READABLE = 60  # characters of a run's name before its hash

# Only for git objects and texts, which never change.
_git = cache(git)
_parse = cache(parse)


@dataclass(frozen=True)
class Snapshot:
    """Tracked files with their uncommitted changes, and all workloads, tracked or not.

    Attributes:
        root: the project's folder.
        baseline: the commit that the experiments belong to.
        tree: the git tree object that holds all files.
    """

    root: Path
    baseline: str
    tree: str

    @classmethod
    def take(cls) -> "Snapshot":
        """Take a snapshot of the current folder without changing its files or git's index.

        Raises:
            RunError: the folder is not the project's, or not a git repository with a commit.
        """
        root = Path.cwd()
        if not Path(PARAMS).is_file():
            raise RunError(f"there is no {PARAMS} in {root.name}: run this in the project's folder")
        try:
            baseline = git(root, "rev-parse", "--verify", "HEAD^{commit}")
        except RunError as error:
            raise RunError(f"{root.name} has no commit: experiments belong to one, so 'git commit' first") from error
        with TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            shutil.copy(root / git(root, "rev-parse", "--git-path", "index"), index)
            git(root, "add", "--update", index=index)
            git(root, "add", "--force", PARAMS, *map(str, sorted(Path("models").glob("*.yaml"))), index=index)
            return cls(root, baseline, git(root, "write-tree", index=index))

    def committed(self) -> "Snapshot":
        """Return the snapshot without uncommitted changes."""
        return replace(self, tree=git(self.root, "rev-parse", f"{self.baseline}^{{tree}}"))

    def read(self, path: str) -> dict:
        """Return the content of a YAML file.

        Raises:
            RunError: the snapshot does not have the file, or the file is not YAML.
        """
        return _parse(self._text(path), path)

    def values(self, params: dict[str, object]) -> dict[str, dict]:
        """Return the content of a run's parameter files.

        Args:
            params: values by key, as for ``dvc exp run -S``: "k", "score.batches", "models/NAME.yaml:finetune.epochs".

        Returns:
            The content of params.yaml and of the workload that it names, by path.

        Raises:
            RunError: the snapshot does not have a file or key.
        """
        content = {}
        for path, values in _by_file(params).items():
            content[path] = deepcopy(self.read(path))
            set_values(content[path], path, values)
        workload = f"models/{content[PARAMS]['model']}.yaml"
        return {PARAMS: content[PARAMS], workload: content.get(workload) or self.read(workload)}

    def texts(self, params: dict[str, object]) -> dict[str, str]:
        """Return the same files as text, with their comments."""
        changes = _by_file(params)
        return {path: edit(self._text(path), path, changes.get(path, {})) for path in self.values(params)}

    def edits(self) -> list[str]:
        """List uncommitted changes of files that stages depend on, as git's lines with checksums."""
        lines = _git(self.root, "diff-tree", "-r", self.baseline, self.tree).splitlines()
        edits = {line.partition("\t")[2]: line for line in lines}
        if all(path in (PARAMS, "dvc.lock") or path.startswith("models/") for path in edits):
            return []  # dvc.yaml is slow to parse
        stages = self.read("dvc.yaml")["stages"].values()
        code = {"dvc.yaml", *(path for stage in stages for path in stage.get("do", stage).get("deps", []))}
        return sorted(line for path, line in edits.items() if path in code)

    def name(self, params: dict[str, object], targets: Sequence[str] = ()) -> str:
        """Return a run's name: its parameters, then a hash of everything but the baseline that it depends on."""
        content = json.dumps([self.values(params), self.edits(), list(targets)], sort_keys=True, default=str)
        return f"{readable(params)}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    def _text(self, path: str) -> str:
        try:
            return _git(self.root, "show", f"{self.tree}:{path}")
        except RunError as error:
            workloads = ", ".join(sorted(file.stem for file in (self.root / "models").glob("*.yaml")))
            raise RunError(f"there is no {path}; workloads in models/ are {workloads}") from error


def readable(params: dict[str, object]) -> str:
    """Write parameters as a short name that is valid in git and DVC: "k=5-method=tail"."""
    words = (f"{re.split('[.:]', key)[-1]}={'null' if value is None else value}" for key, value in params.items())
    name = "-".join(re.sub(r"[^A-Za-z0-9.=]+", "_", word).strip("_") for word in words)
    return re.sub(r"\.+", ".", name)[:MAX_READABLE].strip("_.-") or "as_is"


def _by_file(params: dict[str, object]) -> dict[str, dict[str, object]]:
    """Group parameters as {path: {key: value}}."""
    groups: dict[str, dict[str, object]] = {PARAMS: {}}
    for param, value in params.items():
        path, _, key = param.rpartition(":")
        groups.setdefault(path or PARAMS, {})[key] = value
    return groups
