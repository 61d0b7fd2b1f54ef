"""Start-up time of the stages: the imports of a stage and its task, against importing torch."""

import subprocess
import sys
from functools import partial

from benchmarks.side_by_side import Row, Timing, in_turn

TITLE = "Start-up"
ROUNDS = 3
WITHOUT_TORCH = {"segment": 0.7, "report": 0.7}  # allowed seconds
NOTES = {"report": "two thirds of this is matplotlib, which draws the plots"}
TASK = "sglp.tasks.image_classification.data, sglp.tasks.digits"  # imported by stages that read data
READ_DATA = ("extract", "score", "prune")
EVALUATE = ("evaluate", "benchmark")
WITH_TORCH = (
    {"cka": "stages.cka"}
    | {stage: f"stages.{stage}, {TASK}" for stage in READ_DATA}
    | {stage: f"stages.{stage}, {TASK}, sglp.tasks.image_classification.evaluation" for stage in EVALUATE}
)
EXTRA_SECONDS = 1.0  # allowed beyond importing torch


def measure(small: bool) -> list[Row]:
    """Compare stages without torch with a bound, and stages that do not train with torch plus one second."""
    rows = []
    rounds = 1 if small else ROUNDS
    for stage in ("segment",) if small else WITHOUT_TORCH:
        if "torch" in _imported(stage):
            raise AssertionError(f"the stage {stage} imports torch")
        timing = in_turn(partial(_import, f"stages.{stage}"), int, rounds)
        rows.append(_row(stage, f"{WITHOUT_TORCH[stage]} s", timing, WITHOUT_TORCH[stage], NOTES.get(stage, "")))
    for stage, modules in () if small else WITH_TORCH.items():
        timing = in_turn(partial(_import, modules), partial(_import, "torch"), rounds)
        rows.append(_row(stage, f"importing torch, plus {EXTRA_SECONDS:g} s", timing, timing.other + EXTRA_SECONDS))
    return rows


def _row(stage: str, other: str, timing: Timing, bound: float, note: str = "") -> Row:
    ratio = bound / timing.ours
    return Row(f"imports of the stage {stage}", other, Timing(timing.ours, bound, ratio, ratio, ratio), 1.0, note)


def _import(module: str) -> str:
    command = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout


def _imported(stage: str) -> list[str]:
    return _import(f"stages.{stage}").split()
