"""Experiments as records: what every run was asked and what it found. Only this and `outputs` know DVC.

Files of parameters and dvc.lock come from the experiment's commit, outputs by their checksum from DVC's cache. This is
faster than `dvc.api.DVCFileSystem`, which builds the index of every revision, and `dvc.api.exp_show` has no outputs.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from tqdm import tqdm

from experiments.outputs import ExperimentError, Outputs, Run, dials_of
from experiments.snapshot import Snapshot
from stages.support.outcome import NETWORKS
from stages.support.params import flat
from stages.support.scores import Scores, scores_of


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
    scores: Scores
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
            run = Run(repo, revision)
            records.append(_record(name, run.dials() | _code(Snapshot(root, commit, revision)), run))
        except ExperimentError as error:
            left_out[name] = str(error)
    committed, models = Run(repo, commit), {record.dials["model"] for record in records}
    return Reading(records, left_out, {model: committed.dials(model) for model in models if committed.has(model)})


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
        return _record(name, asked_of(dials, snapshot), Outputs(repo.cache.local, checksums))


def asked_of(dials: dict[str, object], snapshot: Snapshot) -> dict:
    """A record's dials, of a point in a snapshot."""
    params, workload = snapshot.values(dials).values()
    return dials_of(params, workload)


def _record(name: str, dials: dict, run: Outputs) -> Record:
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
        scores=scores_of(run.rows("data/scores.csv")),
        removed=tuple(sorted(numbers[layer] for layer in run.json("data/plan.json")["removed"])),
        metrics=metrics,
        benchmark=run.json("reports/benchmark.json", needed=False),
        cost=run.json("reports/scoring.json", needed=False),
    )


def _code(snapshot: Snapshot) -> dict[str, str]:
    """A dial more for a run of code that was not committed: it must not pass for the commit's."""
    edits = snapshot.edits()
    return {"code": hashlib.sha256("\n".join(edits).encode()).hexdigest()[:7]} if edits else {}
