"""Which score knows beforehand what a plan is worth? Every criterion is asked about whole plans whose runs have ended.

On the way to a plan criteria see other sets of layers, each method others; here all of them are asked the same: the
dense network, samples of a draw of their own, and plans of every method, good and bad.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import sglp
from experiments import runs
from experiments.chain import files, network
from experiments.outcomes import Comparison
from experiments.records import Record
from experiments.settings import begins
from experiments.snapshot import Snapshot
from experiments.statistics import partial_correlation, rank_correlation
from experiments.tables import Table
from sglp.batches import inputs_of
from sglp.files import new_file
from sglp.loss import cross_entropy
from sglp.scoring.methods import criterion_names
from sglp.tasks.data import find_data
from stages.support.workloads import load_network, load_split

KNOWN = Path("docs/foresight.json")  # scores of plans, kept with the project as docs/results.jsonl is
SEED, SAMPLES = 10_000, 128  # as many as a method is given, of a seed that no run has; a few may be a method's too
OF_THE_DENSE = (
    *(f"workload.{name}" for name in ("architecture", "layers", "weights", "pretrain")),
    *(f"workload.data.{name}" for name in ("source", "train", "prepare")),
    *(f"workload.files.{name}" for name in ("train", "weights", "code")),
)
NOT_ASKED = ("random", "gradnorm_leak")  # one knows nothing, the other depends on what it was asked before


class Plans(NamedTuple):
    """Distinct plans of one depth: the layers that went, the parameters left, and the qualities of their runs."""

    removed: list[tuple[int, ...]]
    params: list[int]
    tuned: list[float]
    pruned: list[float]


def plans_of(found: Comparison) -> Plans:
    """The plans of a comparison's runs, the quality of a plan as the mean of its runs, the higher the better."""
    of: dict[tuple[int, ...], list[Record]] = {}
    for record in found.records:
        of.setdefault(record.removed, []).append(record)
    key, sign = found.quality.key, found.quality.sign
    qualities = [
        [float(np.mean([sign * record.metrics[which][key] for record in group])) for group in of.values()]
        for which in ("finetuned", "pruned")
    ]
    return Plans(list(of), [group[0].metrics["finetuned"]["params"] for group in of.values()], *qualities)


def scores(found: Comparison, removed: Sequence[tuple[int, ...]], snapshot: Snapshot) -> dict[str, list[float]]:
    """The score of every plan by every criterion; what is known is not asked again."""
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.is_file() else {}
    names = [name for name in criterion_names() if name not in NOT_ASKED]
    of = _model(found.records[0])
    wanted = {name: [f"{of} {name} {' '.join(map(str, plan))}" for plan in removed] for name in names}
    if any(key not in known for keys in wanted.values() for key in keys):
        dense, layers, batches = _dense(found.records[0], snapshot)
        KNOWN.parent.mkdir(exist_ok=True)
        for name in tqdm(names, desc="criteria", unit="", disable=None):
            criterion = sglp.find_criterion(name)(dense, layers, batches, cross_entropy, 0, 1)
            for key, plan in zip(wanted[name], removed, strict=True):
                if key not in known:
                    known[key] = criterion([i for i in range(len(layers)) if i not in plan], plan, ())
            with new_file(KNOWN) as new:
                new.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return {name: [known[key] for key in keys] for name, keys in wanted.items()}


def _model(record: Record) -> str:
    """The workload, and a hash of all that the dense network and the samples depend on."""
    of = sorted((key, value) for key, value in record.dials.items() if begins(key, OF_THE_DENSE))
    return f"{record.dials['model']} {hashlib.sha256(json.dumps(of).encode()).hexdigest()[:7]}"


def table(found: Comparison, snapshot: Snapshot) -> Table | None:
    """How well every criterion, and the number of parameters left, rank plans; None for fewer than ten plans.

    "At equal parameters" is Spearman's partial correlation: of what the parameters do not explain.
    """
    plans = plans_of(found)
    if len(plans.removed) < 10:
        return None
    asked = {"parameters left": [float(count) for count in plans.params]}
    rows = []
    for name, values in (asked | scores(found, plans.removed, snapshot)).items():
        told = [rank_correlation([(values, side)]) for side in (plans.tuned, plans.pruned)]
        alone = None if name in asked else partial_correlation(values, plans.tuned, plans.params)
        rows.append((name, told[0], alone, told[1]))
    rows.sort(key=lambda row: -max(row[1] or 0, row[2] or 0))
    cells = [[row[0], *("" if rho is None else f"{rho:+.2f}" for rho in row[1:])] for row in rows]
    return Table(["score", "after tuning", "after tuning, at equal parameters", "before tuning"], cells)


def _dense(record: Record, snapshot: Snapshot):
    """The dense network of a run, its layers, and one batch of training samples."""
    params, content = (SimpleNamespace(**values) for values in files({"model": record.dials["model"]}, snapshot))
    # What stages are handed of a workload: groups of which they read parts, and others as they stand.
    files_of = {name: SimpleNamespace(**file) for name, file in content.files.items()}
    workload = SimpleNamespace(
        **vars(content) | {"data": SimpleNamespace(**content.data), "files": SimpleNamespace(**files_of)}
    )
    made = runs.run({"model": record.dials["model"]}, target="pretrain", snapshot=snapshot)
    folder, task = network(made, snapshot, "dense"), find_data(workload.task)
    dense = load_network(str(folder), params, workload)
    split = load_split("train", params, workload, task.processor(folder, workload.architecture))
    batches = list(task.calibration_batches(split, SAMPLES, SAMPLES, SEED))
    return dense, sglp.find_layers(dense, inputs_of(batches[0]), paths=workload.layers), batches
