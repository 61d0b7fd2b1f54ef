"""Experiments as records: the parameters and the results of every run. Only this module and `outputs` use DVC.

Parameter files and dvc.lock are read from the experiment's commit, outputs by checksum from DVC's cache. This is
faster than `dvc.api.DVCFileSystem`, which builds the index of every revision; `dvc.api.exp_show` has no outputs.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from tqdm import tqdm

from experiments.outputs import ExperimentError, Outputs, Run, flat_params
from experiments.snapshot import Snapshot
from stages.support.outcome import NETWORKS
from stages.support.params import flat
from stages.support.scores import Scores, scores_of


class Record(NamedTuple):
    """One run.

    Attributes:
        name: the experiment's name.
        params: params.yaml with dots in its keys; the workload, its keys behind "workload."; and "code" if stages ran
            other code than the commit's.
        layers: rows of layers.csv: "name", "removable", "parameters", "macs".
        segments: inclusive (first, last).
        scores: what the method scored.
        removed: indices of the removed layers, in order.
        metrics: {network: {metric: value}} for the networks in `NETWORKS`.
        benchmark: content of benchmark.json; None if the run did not get that far.
        cost: content of scoring.json (seconds, passes); None if the run has none.
    """

    name: str
    params: dict[str, Any]
    layers: list[dict[Any, Any]]
    segments: list[tuple[int, int]]
    scores: Scores
    removed: tuple[int, ...]
    metrics: dict[str, dict[str, Any]]
    benchmark: dict[str, Any] | None
    cost: dict[str, Any] | None


class Reading(NamedTuple):
    """Records, the oldest first; why other experiments are left out, by name; every model's committed parameters."""

    records: list[Record]
    left_out: dict[str, str]
    defaults: dict[str, dict[str, Any]]


def read(baseline: str = "HEAD") -> Reading:
    """Read all experiments that started from one commit; those of other commits ran other code.

    Args:
        baseline: the commit, as git names it.

    Raises:
        ExperimentError: this is not a DVC project, there is no such commit, or it has no experiments.
    """
    try:
        with Repo() as repo:
            return _read(repo, baseline)
    except (DvcException, RevError) as error:
        raise ExperimentError(f"experiments can't be read: {' '.join(str(error).split())}") from error


def _read(repo: Repo, baseline: str) -> Reading:
    commit = resolve_rev(repo.scm, baseline)
    experiments = repo.experiments.ls(all_commits=True)
    if not experiments.get(commit):
        others = [f"{revision[:7]} has {len(pairs)}" for revision, pairs in experiments.items() if pairs]
        where = f" ({', '.join(others)}: 'python -m experiments.compare COMMIT')" if others else ""
        raise ExperimentError(
            f"there are no experiments of {baseline}, {commit[:7]}{where}: run some with 'make sweep' or 'dvc exp run'"
        )
    pairs = sorted(experiments[commit], key=lambda pair: (repo.scm.resolve_commit(pair[1]).commit_time, pair[0]))
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for name, revision in tqdm(pairs, desc="experiments", unit="", disable=None):
        try:
            run = Run(repo, revision)
            code = _code(Snapshot(Path(repo.scm.root_dir), commit, revision))
            records.append(_record(name, run.params() | code, run))
        except ExperimentError as error:
            left_out[name] = str(error)
    committed = Run(repo, commit)
    models = {record.params["model"] for record in records}
    return Reading(records, left_out, {model: committed.params(model) for model in models if committed.has(model)})


def record_of(name: str, params: dict[str, object], checksums: dict[str, str], snapshot: Snapshot) -> Record:
    """Read a run of the stages before those that are timed, which is not an experiment.

    Args:
        name: the run's name.
        params: the parameters that it changed.
        checksums: of what its stages wrote, by path.
        snapshot: the project that it ran in.

    Raises:
        ExperimentError: an output is missing or no longer in the cache.
    """
    with Repo() as repo:
        return _record(name, params_of(params, snapshot), Outputs(repo.cache.local, checksums))


def params_of(params: dict[str, object], snapshot: Snapshot) -> dict[str, Any]:
    """Return a record's parameters: those of a snapshot, with changes."""
    return flat_params(*snapshot.values(params).values())


def _record(name: str, params: dict[str, Any], run: Outputs) -> Record:
    metrics = {network: flat(run.json(f"reports/metrics/{network}.json")) for network in NETWORKS}
    for network, values in metrics.items():
        for key, value in values.items():
            if value != value:  # NaN
                raise ExperimentError(f"{key} in its reports/metrics/{network}.json is not a number")
    columns = {"name": str, "removable": bool, "parameters": int, "macs": int}
    layers = run.table("data/layers.csv", usecols=list(columns), dtype=columns)
    indices = {layer["name"]: index for index, layer in enumerate(layers)}
    return Record(
        name=name,
        params=params,
        layers=layers,
        segments=[tuple(segment) for segment in run.json("data/segments.json")],
        scores=scores_of(run.table("data/scores.csv", dtype=str)),
        removed=tuple(sorted(indices[layer] for layer in run.json("data/plan.json")["removed"])),
        metrics=metrics,
        benchmark=run.json("reports/benchmark.json", needed=False),
        cost=run.json("reports/scoring.json", needed=False),
    )


def _code(snapshot: Snapshot) -> dict[str, str]:
    """Return one more parameter for a run of code that was not committed: it differs from the commit's runs."""
    edits = snapshot.edits()
    return {"code": hashlib.sha256("\n".join(edits).encode()).hexdigest()[:7]} if edits else {}
