"""What a stage takes before it begins: its imports and those of its task, against those of torch."""

import subprocess
import sys

from benchmarks.side_by_side import Row, Timing, in_turn

TITLE = "Start-up"
ROUNDS = 3
WITHOUT_TORCH = {"segment": 0.7, "report": 0.7}  # seconds that they may take
NOTES = {"report": "two thirds of it are matplotlib, which draws the plots"}
TASK = "sglp.tasks.image_classification.data, sglp.tasks.digits"  # imported by what opens data, knowing its workload
OPENING, JUDGING = ("extract", "score", "prune"), ("evaluate", "benchmark")
WITH_TORCH = (
    {"cka": "stages.cka"}
    | {stage: f"stages.{stage}, {TASK}" for stage in OPENING}
    | {stage: f"stages.{stage}, {TASK}, sglp.tasks.image_classification.evaluation" for stage in JUDGING}
)
MORE = 1.0  # seconds beyond importing torch


def measure(small: bool) -> list[Row]:
    """Stages that need no torch are held against a bound, those that do not train against torch and a second."""
    rows, rounds = [], 1 if small else ROUNDS
    for stage in ("segment",) if small else WITHOUT_TORCH:
        if "torch" in _imported(stage):
            raise AssertionError(f"the stage {stage} imports torch")
        timing = in_turn(lambda stage=stage: _import(f"stages.{stage}"), int, rounds)
        rows.append(_row(stage, f"{WITHOUT_TORCH[stage]} s", timing, WITHOUT_TORCH[stage], NOTES.get(stage, "")))
    for stage, modules in () if small else WITH_TORCH.items():
        timing = in_turn(lambda modules=modules: _import(modules), lambda: _import("torch"), rounds)
        rows.append(_row(stage, f"importing torch, and {MORE:g} s", timing, timing.other + MORE))
    return rows


def _row(stage: str, other: str, timing: Timing, bound: float, note: str = "") -> Row:
    ratio = bound / timing.ours
    return Row(f"imports of the stage {stage}", other, Timing(timing.ours, bound, ratio, ratio, ratio), 1.0, note)


def _import(module: str) -> str:
    command = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout


def _imported(stage: str) -> list[str]:
    return _import(f"stages.{stage}").split()
