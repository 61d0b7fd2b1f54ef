"""The inputs and outputs of runs: parameter files and dvc.lock from commits, outputs from DVC's cache."""

import io
import json
import re
from functools import cache
from typing import Any

import pandas as pd
from dvc.repo import Repo

from experiments.yaml_files import get_value, parse
from sglp.errors import SGLPError
from stages.support.params import flat

_yaml = cache(parse)


class ExperimentError(SGLPError):
    """There are no experiments, or one lacks what a comparison needs."""


def flat_params(params: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
    """Flatten params.yaml and a workload into a record's parameters, without the paths of files."""
    keys = flat(workload, "workload.")
    return flat(params) | {k: v for k, v in keys.items() if not re.fullmatch(r"workload\.files\..*\.path", k)}


class Outputs:
    """The outputs of stages, by the checksums that DVC has of them."""

    def __init__(self, store: Any, checksums: dict[str, str]):
        self.store = store
        self.checksums = checksums

    def table(self, path: str, **options: Any) -> list[dict[Any, Any]]:
        """Read a CSV output as a dict per row; `options` are those of pandas.read_csv."""
        text = io.StringIO(self._output(path))
        return pd.read_csv(text, keep_default_na=False, **options).to_dict("records")

    def json(self, path: str, needed: bool = True) -> Any:
        """Read a JSON output; None if it is not needed and the run did not make it."""
        return json.loads(self._output(path)) if needed or self._has(path) else None

    def _has(self, path: str) -> bool:
        return path in self.checksums

    def _output(self, path: str) -> str:
        if path not in self.checksums:
            raise ExperimentError(f"it did not make {path}")
        try:
            return self.store.fs.cat_file(self.store.oid_to_path(self.checksums[path])).decode()
        except FileNotFoundError as error:
            raise ExperimentError(f"{path} is not in the cache: if it was pushed, run 'dvc exp pull'") from error


class Run(Outputs):
    """A commit's parameters and outputs."""

    def __init__(self, repo: Repo, revision: str):
        self.files = repo.scm.get_fs(revision)
        self._text = cache(self._read)  # every output needs the same files and stages
        self._is_current = cache(self._compare)
        self.stages = stages_in(self._text("dvc.lock"))
        outputs = [(name, out) for name, stage in self.stages.items() for out in stage.get("outs") or []]
        self.makers = {out["path"]: (name, out) for name, out in outputs}
        super().__init__(repo.cache.local, {out["path"]: out["md5"] for _, out in outputs})

    def has(self, model: str) -> bool:
        """Return whether the commit has a workload."""
        return self.files.exists(f"models/{model}.yaml")

    def params(self, model: str | None = None) -> dict[str, Any]:
        """Return the commit's parameters, for its own model or another one."""
        params = _yaml(self._text("params.yaml"), "params.yaml")
        model = model or params["model"]
        path = f"models/{model}.yaml"
        if not self.has(model):
            raise ExperimentError(f"{path} is not in its commit")
        return flat_params(params | {"model": model}, _yaml(self._text(path), path))

    def _has(self, path: str) -> bool:
        return super()._has(path) and self._is_current(self.makers[path][0])

    def _output(self, path: str) -> str:
        if path in self.makers and not self._has(path):
            raise ExperimentError(f"its {path} is an earlier run's: the stage {self.makers[path][0]} did not run")
        return super()._output(path)

    def _compare(self, name: str) -> bool:
        """Return whether a stage's entry in dvc.lock is this run's: a run of some stages keeps the others' entries."""
        stage = self.stages[name]
        for path, listed in (stage.get("params") or {}).items():
            if any(get_value(_yaml(self._text(path), path), key) != value for key, value in listed.items()):
                return False
        outputs = [(dep, *self.makers[dep["path"]]) for dep in stage.get("deps") or [] if dep["path"] in self.makers]
        return all(dep["md5"] == out["md5"] and self._is_current(maker) for dep, maker, out in outputs)

    def _read(self, path: str) -> str:
        return self.files.cat_file(path).decode() if self.files.exists(path) else ""


def stages_in(lock: str) -> dict[str, dict[str, Any]]:
    """Read the stages of dvc.lock without the checksums of code, which are most of it: parsing YAML is slow."""
    short = re.sub(r"^    - path: \S+\.py\n(?:      .*\n)*", "", lock, flags=re.MULTILINE)
    return (_yaml(short, "dvc.lock") or {}).get("stages", {})
