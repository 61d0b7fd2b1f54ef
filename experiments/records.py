"""Experiments as records: what every run was asked and what it found. The only module of the comparison that knows DVC.

Files of parameters and dvc.lock come from the experiment's commit, outputs by their checksum from DVC's cache. This is
faster than `dvc.api.DVCFileSystem`, which builds the index of every revision, and `dvc.api.exp_show` has no outputs.
"""

import csv
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from ruamel.yaml import YAML
from tqdm import tqdm

from experiments.snapshot import Snapshot
from sglp.errors import SGLPError
from stages.support.outcome import NETWORKS
from stages.support.params import flat


class ExperimentError(SGLPError):
    """There are no experiments, or one lacks what a comparison needs."""


class Score(NamedTuple):
    """A row of scores.csv: the score of a segment that keeps only these layers."""

    segment: int
    kept: tuple[int, ...]
    score: float


class Record(NamedTuple):
    """One run.

    Attributes:
        name: of the experiment.
        dials: params.yaml with dots in its keys, the workload, its keys behind "workload.", and "code" where stages ran
            other code than the commit's.
        layers: rows of layers.csv: "name", "removable", "parameters", "macs".
        segments: inclusive (first, last).
        scores: what the method scored.
        removed: numbers of the layers that went, in order.
        metrics: {network: {metric: value}} for dense, pruned and finetuned.
        benchmark: content of benchmark.json, None where the run did not go that far.
        cost: content of scoring.json (seconds, passes), None where the run left none.
    """

    name: str
    dials: dict
    layers: list[dict]
    segments: list[tuple[int, int]]
    scores: list[Score]
    removed: tuple[int, ...]
    metrics: dict[str, dict]
    benchmark: dict | None
    cost: dict | None


class Reading(NamedTuple):
    """Records, the oldest first; the reasons why other experiments are left out; the committed dials of every model."""

    records: list[Record]
    left_out: dict[str, str]
    defaults: dict[str, dict]


def read(baseline: str = "HEAD") -> Reading:
    """All experiments that started from one commit; those of another one ran other code.

    Args:
        baseline: the commit, as git names it.

    Raises:
        ExperimentError: this is no project of DVC's, there is no such commit, or it has no experiments.
    """
    try:
        with Repo() as repo:
            return _read(repo, baseline)
    except (DvcException, RevError) as error:
        raise ExperimentError(f"experiments can't be read: {' '.join(str(error).split())}") from error


def _read(repo: Repo, baseline: str) -> Reading:
    commit = resolve_rev(repo.scm, baseline)
    of = repo.experiments.ls(all_commits=True)
    if not of.get(commit):
        others = [f"{rev[:7]} has {len(found)}" for rev, found in of.items() if found]
        where = f" ({', '.join(others)}: 'python -m experiments.compare COMMIT')" if others else ""
        raise ExperimentError(
            f"there are no experiments of {baseline}, {commit[:7]}{where}: 'make sweep' or 'dvc exp run' makes some"
        )
    found = sorted(of[commit], key=lambda pair: (repo.scm.resolve_commit(pair[1]).commit_time, pair[0]))
    records, left_out, root = [], {}, Path(repo.scm.root_dir)
    for name, revision in tqdm(found, desc="experiments", unit="", disable=None):
        try:
            run = _Run(repo, revision)
            records.append(_record(name, run.dials() | _code(Snapshot(root, commit, revision)), run))
        except ExperimentError as error:
            left_out[name] = str(error)
    committed, models = _Run(repo, commit), {record.dials["model"] for record in records}
    return Reading(records, left_out, {model: committed.dials(model) for model in models if committed.has(model)})


def dials_of(params: dict, workload: dict) -> dict:
    """A record's dials, from the content of params.yaml and of the workload. Where files lie is nobody's business."""
    keys = flat(workload, "workload.")
    return flat(params) | {k: v for k, v in keys.items() if not re.fullmatch(r"workload\.files\..*\.path", k)}


def record_of(name: str, dials: dict[str, object], checksums: dict[str, str], snapshot: Snapshot) -> Record:
    """A run of the stages before those that are timed, which is no experiment.

    Args:
        name: of the run.
        dials: that were turned.
        checksums: of what its stages wrote, by path.
        snapshot: the project that it ran in.

    Raises:
        ExperimentError: the cache has lost what it wrote.
    """
    with Repo() as repo:
        return _record(name, asked_of(dials, snapshot), _Outputs(repo.cache.local, checksums))


def asked_of(dials: dict[str, object], snapshot: Snapshot) -> dict:
    """A record's dials, of a point in a snapshot."""
    params, workload = snapshot.values(dials).values()
    return dials_of(params, workload)


def _record(name: str, dials: dict, run: "_Outputs") -> Record:
    metrics = {network: flat(run.json(f"reports/metrics/{network}.json")) for network in NETWORKS}
    for network, key in ((network, key) for network, found in metrics.items() for key in found):
        if metrics[network][key] != metrics[network][key]:
            raise ExperimentError(f"{key} in its reports/metrics/{network}.json is not a number")
    layers = [
        {"name": row["name"], "removable": row["removable"] == "True"}
        | {key: int(row[key]) for key in ("parameters", "macs")}
        for row in run.rows("data/layers.csv")
    ]
    numbers = {layer["name"]: number for number, layer in enumerate(layers)}
    return Record(
        name=name,
        dials=dials,
        layers=layers,
        segments=[tuple(segment) for segment in run.json("data/segments.json")],
        scores=[
            Score(int(row["segment"]), tuple(map(int, row["kept"].split())), float(row["score"]))
            for row in run.rows("data/scores.csv")
        ],
        removed=tuple(sorted(numbers[layer] for layer in run.json("data/plan.json")["removed"])),
        metrics=metrics,
        benchmark=run.json("reports/benchmark.json", needed=False),
        cost=run.json("reports/scoring.json", needed=False),
    )


def _code(snapshot: Snapshot) -> dict[str, str]:
    """A dial more for a run of code that was not committed: it must not pass for the commit's."""
    edits = snapshot.edits()
    return {"code": hashlib.sha256("\n".join(edits).encode()).hexdigest()[:7]} if edits else {}


class _Outputs:
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


class _Run(_Outputs):
    """What one commit says, and the outputs that belong to it."""

    def __init__(self, repo: Repo, revision: str):
        self.files = repo.scm.get_fs(revision)
        self._text, self._answers = cache(self._text), cache(self._answers)  # every output asks for the same again
        self.stages = _stages(self._text("dvc.lock"))
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
            if any(_value(_yaml(self._text(path)), key) != value for key, value in listed.items()):
                return False
        made = [(dep, *self.made[dep["path"]]) for dep in stage.get("deps") or [] if dep["path"] in self.made]
        return all(dep["md5"] == out["md5"] and self._answers(maker) for dep, maker, out in made)

    def _text(self, path: str) -> str:
        return self.files.cat_file(path).decode() if self.files.exists(path) else ""


def _value(content: dict, key: str):
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _stages(lock: str) -> dict[str, dict]:
    """The stages of dvc.lock without the checksums of code, which are most of it: YAML is slow to read."""
    short = re.sub(r"^    - path: \S+\.py\n(?:      .*\n)*", "", lock, flags=re.MULTILINE)
    return (_yaml(short) or {}).get("stages", {})


@cache
def _yaml(text: str):
    return YAML(typ="safe", pure=True).load(text)
