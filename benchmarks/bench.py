"""Write docs/benchmarks.md: the program against its peers on the same work. ``python -m benchmarks.bench``.

Every part first checks that both versions give the same result, then times them alternately. Networks have random
weights, which do not affect the time.
"""

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import finetuning, latency, pipeline, scoring, segmentation, similarity, start_up
from benchmarks.side_by_side import Row
from sglp.files import new_file

PAGE = Path("docs/benchmarks.md")
HEAD = ("| work | compared with | ours, s | other, s | ratio | goal |", "|---|---|--:|--:|--:|--:|")
PARTS = (similarity, segmentation, scoring, latency, finetuning, pipeline, start_up)


def page(measured: dict[str, list[Row]]) -> str:
    """Format the page: one table per part, with the ratios and whether they reach their goals."""
    lines = [
        "<!-- Written by `python -m benchmarks.bench`. -->",
        "# Benchmarks",
        "",
        f"On {os.cpu_count()} cores ({_processor()}), {_accelerator()}, torch {torch.__version__} with",
        f"{torch.get_num_threads()} threads. `make bench` writes this page. Both versions run alternately. The ratio",
        "is the other's time divided by ours: the median over rounds, with the smallest and the largest. Where both",
        "have a result, the results are compared before timing.",
    ]
    for title, rows in measured.items():
        lines += ["", f"## {title}", "", *HEAD, *(_line(row) for row in rows)]
        notes = [f"- {row.work}: {row.note}" for row in rows if row.note]
        lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    own, other, ratio, low, high = row.timing
    goal = "" if row.goal is None else f"{row.goal:.3g} {'reached' if ratio >= row.goal else '**missed**'}"
    times = f"{own:.3g} | {other:.3g} | {ratio:.2f} ({low:.2f} to {high:.2f})"
    return f"| {row.work} | {row.other} | {times} | {goal} |"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _accelerator() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def main() -> None:
    """Measure all parts, and write the page."""
    measured: dict[str, list[Row]] = {}
    measure: dict[str, Callable[[bool], list[Row]]] = {part.TITLE: part.measure for part in PARTS}
    for title in tqdm(measure, desc="parts", disable=None):
        measured[title] = measure[title](False)
        for row in measured[title]:
            print(_line(row), file=sys.stderr, flush=True)
    with new_file(PAGE) as new:
        new.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
