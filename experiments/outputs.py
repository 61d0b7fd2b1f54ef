"""What runs asked and wrote: parameter files and dvc.lock of their commits, outputs from DVC's cache."""

import csv
import json
import re
from functools import cache

from dvc.repo import Repo
from ruamel.yaml import YAML

from experiments.snapshot import value_of
from sglp.errors import SGLPError
from stages.support.params import flat


class ExperimentError(SGLPError):
    """There are no experiments, or one lacks what a comparison needs."""


def dials_of(params: dict, workload: dict) -> dict:
    """A record's dials, from the content of params.yaml and of the workload. Where files lie is nobody's business."""
    keys = flat(workload, "workload.")
    return flat(params) | {k: v for k, v in keys.items() if not re.fullmatch(r"workload\.files\..*\.path", k)}


class Outputs:
    """What stages wrote, by the checksums that DVC has of it."""

    def __init__(self, store, checksums: dict[str, str]):
        self.store, self.checksums = store, checksums

    def rows(self, path: str) -> list[dict]:
        """A CSV output."""
        return list(csv.DictReader(self._output(path).splitlines()))

    def json(self, path: str, needed: bool = True):
        """A JSON output; None for one that is not needed and that the run did not make."""
        return json.loads(self._output(path)) if needed or self._has(path) else None

    def _has(self, path: str) -> bool:
        return path in self.checksums

    def _output(self, path: str) -> str:
        if path not in self.checksums:
            raise ExperimentError(f"it did not make {path}")
        try:
            return self.store.fs.cat_file(self.store.oid_to_path(self.checksums[path])).decode()
        except FileNotFoundError as error:
            raise ExperimentError(
                f"{path} is not in the cache: 'dvc exp pull' brings what a colleague pushed"
            ) from error


class Run(Outputs):
    """What one commit says, and the outputs that belong to it."""

    def __init__(self, repo: Repo, revision: str):
        self.files = repo.scm.get_fs(revision)
        self._text, self._answers = cache(self._text), cache(self._answers)  # every output asks for the same again
        self.stages = stages_in(self._text("dvc.lock"))
        self.made = {out["path"]: (name, out) for name, stage in self.stages.items() for out in stage.get("outs") or []}
        super().__init__(repo.cache.local, {path: out["md5"] for path, (_, out) in self.made.items()})

    def has(self, model: str) -> bool:
        """Whether the commit knows a workload."""
        return self.files.exists(f"models/{model}.yaml")

    def dials(self, model: str | None = None) -> dict:
        """The commit's dials, of its own model or another one."""
        params = _yaml(self._text("params.yaml"))
        model = model or params["model"]
        if not self.has(model):
            raise ExperimentError(f"models/{model}.yaml is not in its commit")
        return dials_of(params | {"model": model}, _yaml(self._text(f"models/{model}.yaml")))

    def _has(self, path: str) -> bool:
        return super()._has(path) and self._answers(self.made[path][0])

    def _output(self, path: str) -> str:
        if path in self.made and not self._has(path):
            raise ExperimentError(f"its {path} is an earlier run's: the stage {self.made[path][0]} did not run")
        return super()._output(path)

    def _answers(self, name: str) -> bool:
        """Whether a stage's entry in dvc.lock is this run's: a run of some stages keeps the others' old entries."""
        stage = self.stages[name]
        for path, listed in (stage.get("params") or {}).items():
            if any(value_of(_yaml(self._text(path)), key) != value for key, value in listed.items()):
                return False
        made = [(dep, *self.made[dep["path"]]) for dep in stage.get("deps") or [] if dep["path"] in self.made]
        return all(dep["md5"] == out["md5"] and self._answers(maker) for dep, maker, out in made)

    def _text(self, path: str) -> str:
        return self.files.cat_file(path).decode() if self.files.exists(path) else ""


def stages_in(lock: str) -> dict[str, dict]:
    """The stages of dvc.lock without the checksums of code, which are most of it: YAML is slow to read."""
    short = re.sub(r"^    - path: \S+\.py\n(?:      .*\n)*", "", lock, flags=re.MULTILINE)
    return (_yaml(short) or {}).get("stages", {})


@cache
def _yaml(text: str):
    return YAML(typ="safe", pure=True).load(text)
