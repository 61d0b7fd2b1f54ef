"""How well does each criterion predict accuracy after fine-tuning? Criteria score whole plans whose runs are known.

While they search for a plan, criteria see different sets of layers. Here all of them score the same plans, good and
bad ones of every method, with the dense network and samples of a seed of their own.
"""

import hashlib
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import sglp
from experiments import runs
from experiments.chain import files, network
from experiments.outcomes import Comparison
from experiments.records import Record
from experiments.settings import within
from experiments.snapshot import Snapshot
from experiments.statistics import partial_correlation, rank_correlation
from experiments.tables import Table
from sglp.batches import inputs_of
from sglp.files import new_file
from sglp.loss import cross_entropy
from sglp.scoring.methods import criterion_names
from sglp.tasks.data import find_data
from stages.support.params import DeclaredParams
from stages.support.workloads import load_network, load_split

KNOWN = Path("docs/foresight.json")  # scores of plans, kept with the project like docs/results.jsonl
SEED, SAMPLES = 10_000, 128  # as many samples as a method has, of a seed without runs; a few may be a method's, too
DENSE_PARAMS = (
    *(f"workload.{name}" for name in ("architecture", "layers", "weights", "pretrain")),
    *(f"workload.data.{name}" for name in ("source", "train", "prepare")),
    *(f"workload.files.{name}" for name in ("train", "weights", "code")),
)
LEFT_OUT = ("random", "gradnorm_leak")  # the first ignores the plan, the second depends on the plans scored before


def plans_of(comparison: Comparison) -> pd.DataFrame:
    """Return the distinct plans of one depth: mean qualities "finetuned" and "pruned", more is better, and "params"."""
    columns = {f"{name}.{comparison.quality.key}": name for name in ("finetuned", "pruned")}
    groups = comparison.runs.groupby("removed", sort=False)
    plans = groups[list(columns)].mean().rename(columns=columns) * comparison.quality.sign
    return plans.assign(params=groups["finetuned.params"].first())


def scores(comparison: Comparison, removed: Sequence[tuple[int, ...]], snapshot: Snapshot) -> dict[str, list[float]]:
    """Score every plan by every criterion; known scores are not computed again."""
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.is_file() else {}
    model = _model(comparison.records[0])
    names = [name for name in criterion_names() if name not in LEFT_OUT]
    wanted = {name: {f"{model} {name} {' '.join(map(str, plan))}": plan for plan in removed} for name in names}
    if any(key not in known for keys in wanted.values() for key in keys):
        dense, layers, batches = _dense(comparison.records[0], snapshot)
        KNOWN.parent.mkdir(exist_ok=True)
        for name, keys in tqdm(wanted.items(), desc="criteria", unit="", disable=None):
            criterion = sglp.find_criterion(name)(dense, layers, batches, cross_entropy, 0, 1)
            for key, plan in keys.items():
                if key not in known:
                    known[key] = criterion([i for i in range(len(layers)) if i not in plan], plan, ())
            with new_file(KNOWN) as new:
                new.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return {name: [known[key] for key in keys] for name, keys in wanted.items()}


def table(comparison: Comparison, snapshot: Snapshot) -> Table | None:
    """Correlate every criterion, and the number of parameters left, with the outcome; None for fewer than ten plans.

    "At equal parameters" is Spearman's partial correlation, of what the parameters do not explain.
    """
    plans = plans_of(comparison)
    if len(plans) < 10:
        return None
    tuned, pruned, params = (list(plans[column]) for column in ("finetuned", "pruned", "params"))
    criteria = {"parameters left": params} | scores(comparison, list(plans.index), snapshot)
    table = pd.DataFrame.from_dict(
        {
            name: (rank_correlation(x, tuned), partial_correlation(x, tuned, params), rank_correlation(x, pruned))
            for name, x in criteria.items()
        },
        orient="index",
        columns=["after tuning", "after tuning, at equal parameters", "before tuning"],
    )
    order = (-table.iloc[:, :2].fillna(0).max(axis=1)).sort_values(kind="stable").index
    table = table.loc[order].map(lambda rho: "" if isnan(rho) else f"{rho:+.2f}")
    return Table(["score", *table.columns], table.reset_index().to_numpy().tolist())


def _model(record: Record) -> str:
    """Identify the dense network and the samples: the workload, and a hash of all that they depend on."""
    params = sorted((key, value) for key, value in record.params.items() if within(key, DENSE_PARAMS))
    return f"{record.params['model']} {hashlib.sha256(json.dumps(params).encode()).hexdigest()[:7]}"


def _dense(record: Record, snapshot: Snapshot) -> tuple[torch.nn.Module, Any, list[Any]]:
    """Return the dense network of a run, its layers, and one batch of training samples."""
    model = {"model": record.params["model"]}
    params, content = files(model, snapshot)
    groups = {name: DeclaredParams("", "", file) for name, file in content["files"].items()}
    nested = {"data": DeclaredParams("", "", content["data"]), "files": DeclaredParams("", "", groups)}
    declared, workload = DeclaredParams("", "", params), DeclaredParams("", "", content | nested)
    run = runs.run(model, target="pretrain", snapshot=snapshot)
    folder = network(run, snapshot, "dense")
    task = find_data(content["task"])
    dense = load_network(str(folder), declared, workload)
    split = load_split("train", declared, workload, task.processor(folder, content["architecture"]))
    batches = list(task.calibration_batches(split, SAMPLES, SAMPLES, SEED))
    return dense, sglp.find_layers(dense, inputs_of(batches[0]), paths=content["layers"]), batches
