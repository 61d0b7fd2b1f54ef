"""All experiments of a commit on one page, and as a table: ``python -m experiments.compare [COMMIT]``.

Writes reports/compare.html, which stands alone, and reports/compare.csv.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.charts import draw_k, draw_layers, draw_outcome
from experiments.outcomes import Comparison, compare
from experiments.records import ExperimentError, Reading, Record, read
from experiments.settings import begins, by_model, differing, distinct, settings
from experiments.tables import Table, tables_of
from sglp.errors import SGLPError
from sglp.files import new_file
from stages.report import measured_on
from stages.support.pages import embedded, render
from stages.support.params import flat
from stages.support.tables import write_rows

# Columns of words.
TEXTS = ("setting", "dial", "value", "experiment", "on the Pareto front of")


def main(baseline: str = "HEAD", folder: str = "reports") -> None:
    """Read the experiments that started from a commit, write the page and the table.

    Raises:
        ExperimentError: there are none that can be compared; nothing is written.
    """
    reading = read(baseline)
    records, same = distinct(reading.records)
    found = reading._replace(records=records, left_out=reading.left_out | same)
    html, (columns, cells) = page(found), rows(records)
    write_rows(f"{folder}/compare.csv", columns, cells)
    with new_file(f"{folder}/compare.html") as new:
        new.write_text(html, encoding="utf-8")
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"{len(records)} runs: {folder}/compare.html, {folder}/compare.csv")


def page(reading: Reading) -> str:
    """The HTML page of distinct runs.

    Raises:
        ExperimentError: there are none.
    """
    if not reading.records:
        why = [f" ({name}: {reason})" for name, reason in reading.left_out.items()]
        raise ExperimentError(
            f"no experiment can be compared{(why or [''])[0]}: 'make sweep' or 'dvc exp run' makes some"
        )
    models = []
    for name, group in by_model(reading.records).items():
        found = compare(group, reading.defaults.get(group[0].dials["model"]))
        drawn = {"outcome": draw_outcome(found), "k": draw_k(found), "layers": draw_layers(found)}
        models.append(
            {
                "name": name,
                "quality": found.quality.label,
                "reference": found.reference.label,
                "measured": measured_on(found.dense),
                "sampling": _sampling(found),
                "tables": tables_of(found),
                "figures": {figure: content and embedded(content) for figure, content in drawn.items()},
            }
        )
    content = {"models": models, "left_out": reading.left_out, "count": len(reading.records), "numeric": _numeric}
    return render(Path(__file__).with_name("compare.html.jinja"), content)


def rows(records: Sequence[Record]) -> tuple[list[str], list[list]]:
    """Columns and rows of the table, a row a run: params.yaml, what differs in workloads, all that was measured."""
    shown = set(differing([record.dials for record in records], lambda dials: dials["model"]))
    found = []
    for name, group in by_model(records).items():
        for setting in settings(group):
            for record in setting.records:
                dials = {k: v for k, v in record.dials.items() if k in shown or not begins(k, ("workload",))}
                names = [layer["name"] for layer in record.layers]
                found.append(
                    {"experiment": record.name, "workload": name, "setting": setting.label}
                    | {key: value if isinstance(value, str) else json.dumps(value) for key, value in dials.items()}
                    | {"segments": len(record.segments), "removed": " ".join(names[i] for i in record.removed)}
                    | flat(record.metrics)
                    | {key: json.dumps(v) if isinstance(v, list) else v for key, v in _timed(record).items()}
                    | flat({"scoring": record.cost or {}})
                )
    columns = list(dict.fromkeys(key for row in found for key in row))
    return columns, [[row.get(column, "") for column in columns] for row in found]


def _timed(record: Record) -> dict:
    """The benchmark, the kinds of work by their names."""
    benchmark = record.benchmark or {}
    sizes = benchmark.get("batch", {})
    work = {size: measured | {"work": {w["name"]: w for w in measured["work"]}} for size, measured in sizes.items()}
    return flat({"timed": benchmark | {"batch": work}}) if benchmark else {}


def _sampling(found: Comparison) -> str:
    """The standard error of a share that the size of the test alone leaves."""
    share, count = found.dense[found.quality.key], found.dense.get("samples")
    return f"{100 * (share * (1 - share) / count) ** 0.5:.1f} points" if found.quality.share and count else ""


def _numeric(table: Table) -> set[int]:
    """The columns of numbers, which stand on the right."""
    return {i for i, name in enumerate(table.columns) if name not in TEXTS and not name.startswith("layers that")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare all experiments that started from a commit.")
    parser.add_argument("commit", nargs="?", default="HEAD", help="where they started (default: HEAD)")
    try:
        main(parser.parse_args().commit)
    except SGLPError as error:
        sys.exit(f"compare: {error}")
