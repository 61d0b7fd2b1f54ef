"""The project as it stands at one moment: who edits files while a sweep runs does not disturb it."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML, YAMLError

from experiments.git import RunError, git

PARAMS = "params.yaml"
READABLE = 60  # characters of a name before its hash


@dataclass(frozen=True)
class Snapshot:
    """Tracked files with their changes, and all workloads, known to git or not.

    Attributes:
        root: the project's folder.
        baseline: the commit that experiments belong to.
        tree: git's name for the content of all files.
    """

    root: Path
    baseline: str
    tree: str

    @classmethod
    def take(cls) -> "Snapshot":
        """Of the current folder; nothing in it changes, git's index neither.

        Raises:
            RunError: it is not the project's, or no git repository with a commit.
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
        """The same without what is not committed."""
        return replace(self, tree=git(self.root, "rev-parse", f"{self.baseline}^{{tree}}"))

    def read(self, path: str) -> dict:
        """The content of a file in YAML.

        Raises:
            RunError: there is none.
        """
        return _read(self, path)

    def values(self, dials: dict[str, object]) -> dict[str, dict]:
        """What the parameter files of a run hold, with its dials.

        Args:
            dials: values by key, as for ``dvc exp run -S``: "k", "score.batches", "models/NAME.yaml:finetune.epochs".

        Returns:
            The content of params.yaml and of the workload that it chooses, by path.

        Raises:
            RunError: there is no such file or key.
        """
        changes = _by_file(dials)
        content = {path: _changed(_read(self, path), path, keys) for path, keys in changes.items()}
        workload = f"models/{content[PARAMS]['model']}.yaml"
        return {PARAMS: content[PARAMS], workload: content.get(workload) or _read(self, workload)}

    def texts(self, dials: dict[str, object]) -> dict[str, str]:
        """The same as text; comments stay."""
        changes, texts = _by_file(dials), {}
        for path in self.values(dials):
            text = io.StringIO()
            _yaml("rt").dump(_changed(_yaml("rt").load(_text(self, path)), path, changes.get(path, {})), text)
            texts[path] = text.getvalue()
        return texts

    def edits(self) -> list[str]:
        """What differs from the baseline of the files that stages depend on: git's lines with their checksums."""
        return _edits(self)

    def name(self, dials: dict[str, object], targets: Sequence[str] = ()) -> str:
        """What a run is called: its dials, then a hash of all that it depends on besides the baseline."""
        content = json.dumps([self.values(dials), self.edits(), list(targets)], sort_keys=True, default=str)
        return f"{readable(dials)}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def readable(dials: dict[str, object]) -> str:
    """Dials in a few words that git and DVC take for a name: "k=5-method=tail"."""
    words = (f"{re.split('[.:]', dial)[-1]}={'null' if value is None else value}" for dial, value in dials.items())
    plain = "-".join(re.sub(r"[^A-Za-z0-9.=]+", "_", word).strip("_") for word in words)
    return re.sub(r"\.+", ".", plain)[:READABLE].strip("_.-") or "as_is"


def _by_file(dials: dict[str, object]) -> dict[str, dict[str, object]]:
    """Dials as {path: {key: value}}."""
    changes: dict[str, dict[str, object]] = {PARAMS: {}}
    for dial, value in dials.items():
        path, _, key = dial.rpartition(":")
        changes.setdefault(path or PARAMS, {})[key] = value
    return changes


def _changed(content: dict, path: str, keys: dict[str, object]) -> dict:
    """A parameter file's content with other values for some keys."""
    content = deepcopy(content)
    for key, value in keys.items():
        group = content
        *parents, last = key.split(".")
        for part in [*parents, last]:
            if not isinstance(group, dict) or part not in group:
                there = f"; it can be one of {', '.join(group)}" if isinstance(group, dict) else ""
                raise RunError(f"{path}: {key} is no key{there}")
            group, parent = group[part], group
        parent[last] = value
    return content


def value_of(content: dict | None, key: str):
    """What stands under a key with dots; None where there is nothing."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def parsed(text: str, path: str) -> dict:
    """What a file in YAML holds.

    Raises:
        RunError: it is no YAML.
    """
    try:
        return _yaml("safe").load(text)
    except YAMLError as error:
        raise RunError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


@cache
def _read(snapshot: Snapshot, path: str) -> dict:
    return parsed(_text(snapshot, path), path)


@cache
def _text(snapshot: Snapshot, path: str) -> str:
    try:
        return git(snapshot.root, "show", f"{snapshot.tree}:{path}")
    except RunError as error:
        there = ", ".join(sorted(file.stem for file in (snapshot.root / "models").glob("*.yaml")))
        raise RunError(f"there is no {path}; workloads in models/ are {there}") from error


@cache
def _edits(snapshot: Snapshot) -> list[str]:
    compared = git(snapshot.root, "diff-tree", "-r", snapshot.baseline, snapshot.tree).splitlines()
    edits = {line.partition("\t")[2]: line for line in compared}
    if all(path in (PARAMS, "dvc.lock") or path.startswith("models/") for path in edits):
        return []  # dvc.yaml takes a while to read
    stages = _read(snapshot, "dvc.yaml")["stages"].values()
    code = {"dvc.yaml", *(path for stage in stages for path in stage.get("do", stage).get("deps", []))}
    return sorted(line for path, line in edits.items() if path in code)


def _yaml(kind: str) -> YAML:
    """YAML 1.2 as DVC writes it."""
    yaml = YAML(typ=kind, pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    return yaml
