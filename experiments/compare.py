"""All experiments of a commit on one page, and as a table: ``python -m experiments.compare [COMMIT]``.

Writes reports/compare.html, which is self-contained, and reports/compare.csv.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.charts import draw_k, draw_layers, draw_outcome
from experiments.outcomes import Comparison, compare
from experiments.records import ExperimentError, Reading, Record, read
from experiments.settings import by_model, differing, distinct, settings, within
from experiments.tables import Table, tables_of
from sglp.errors import SGLPError
from sglp.files import new_file
from sglp.pages import embedded, render
from stages.report import measured_on
from stages.support.params import flat

# Columns of words.
WORDS = ("setting", "parameter", "value", "experiment", "on the Pareto front of", "always removed", "sometimes removed")


def main(baseline: str = "HEAD", folder: str = "reports") -> None:
    """Read the experiments that started from a commit, write the page and the table.

    Raises:
        ExperimentError: no experiment can be compared; nothing is written.
    """
    reading = read(baseline)
    records, repeated = distinct(reading.records)
    reading = reading._replace(records=records, left_out=reading.left_out | repeated)
    html, table = page(reading), rows(records)
    with new_file(f"{folder}/compare.csv") as new:
        table.to_csv(new, index=False, lineterminator="\n")
    with new_file(f"{folder}/compare.html") as new:
        new.write_text(html, encoding="utf-8")
    for name, reason in reading.left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"{len(records)} runs: {folder}/compare.html, {folder}/compare.csv")


def page(reading: Reading) -> str:
    """Make the HTML page of distinct runs.

    Raises:
        ExperimentError: there are no runs.
    """
    if not reading.records:
        why = "".join([f" ({name}: {reason})" for name, reason in reading.left_out.items()][:1])
        raise ExperimentError(f"no experiment can be compared{why}: run some with 'make sweep' or 'dvc exp run'")
    models = []
    for name, group in by_model(reading.records).items():
        comparison = compare(group, reading.defaults.get(group[0].params["model"]))
        drawn = {"outcome": draw_outcome(comparison), "k": draw_k(comparison), "layers": draw_layers(comparison)}
        models.append(
            {
                "name": name,
                "quality": comparison.quality.label,
                "reference": comparison.settings[comparison.reference - 1].label,
                "measured": measured_on(comparison.dense),
                "sampling": _sampling(comparison),
                "tables": tables_of(comparison),
                "figures": {figure: content and embedded(content) for figure, content in drawn.items()},
            }
        )
    content = {"models": models, "left_out": reading.left_out, "count": len(reading.records), "numeric": _numeric}
    return render(Path(__file__).with_name("compare.html.jinja"), content)


def rows(records: Sequence[Record]) -> pd.DataFrame:
    """Make the table, a run per row: params.yaml, the workload's parameters that differ, and all measurements."""
    shown = differing([record.params for record in records], "model")
    table = []
    for name, group in by_model(records).items():
        for label, record in ((setting.label, record) for setting in settings(group) for record in setting.records):
            params = {k: v for k, v in record.params.items() if k in shown or not within(k, ("workload",))}
            names = [layer["name"] for layer in record.layers]
            table.append(
                {"experiment": record.name, "workload": name, "setting": label}
                | {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}
                | {"segments": len(record.segments), "removed": " ".join(names[i] for i in record.removed)}
                | flat(record.metrics)
                | {key: json.dumps(v) if isinstance(v, list) else v for key, v in _timed(record).items()}
                | flat({"scoring": record.cost or {}})
            )
    return pd.DataFrame(table, dtype=object)


def _timed(record: Record) -> dict[str, Any]:
    """Flatten the benchmark, the kinds of work by their names."""
    benchmark = record.benchmark or {}
    sizes = benchmark.get("batch", {})
    work = {size: measured | {"work": {w["name"]: w for w in measured["work"]}} for size, measured in sizes.items()}
    return flat({"timed": benchmark | {"batch": work}}) if benchmark else {}


def _sampling(comparison: Comparison) -> str:
    """Return the standard error of a share that is due to the size of the test set."""
    share, count = comparison.dense[comparison.quality.key], comparison.dense.get("samples")
    return f"{100 * (share * (1 - share) / count) ** 0.5:.1f} points" if comparison.quality.share and count else ""


def _numeric(table: Table) -> set[int]:
    """Return the columns of numbers, which are right-aligned."""
    return {i for i, name in enumerate(table.columns) if name not in WORDS and not name.startswith("removed layers")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare all experiments that started from a commit.")
    parser.add_argument("commit", nargs="?", default="HEAD", help="the commit that they started from (default: HEAD)")
    try:
        main(parser.parse_args().commit)
    except SGLPError as error:
        sys.exit(f"compare: {error}")
