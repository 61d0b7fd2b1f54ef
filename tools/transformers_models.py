"""Write docs/transformers.md: try every causal, masked and image model that transformers can build at a tiny size.

``python -m tools.transformers_models`` takes about an hour on two cores; names of model types restrict it, and it
then prints the outcomes instead.
"""

import json
import queue
import select
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sglp.files import new_file
from tools.transformers_trials import TASKS, Case, Verdict, cases

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"
LANES = 2  # models that are tried at once
CASES = 25  # models that one process tries
SECONDS = 240  # for one model
HEADER = """# Models of transformers

Every causal language model, masked language model and image classifier that transformers {version} can build at a tiny
size from its config alone. For each model these layers were removed in turn: the first removable one, one in the
middle, the last one, and every second one. A model is *right* if for each of these plans

- the pruned model computes what the dense model with these layers bypassed computes (to 1e-4 of the largest output);
- `generate` with a cache gives the greedy text that the model gives without a cache (if it does in the dense model);
- it is saved, and `sglp.load` gives the same outputs, bit for bit. *folder* says who can read the folder: plain
  `from_pretrained`, or `sglp.load` alone.

*Refused* models are refused by `find_layers` with a sentence, before anything is scored. Weights are random: this page
is about structure, not about accuracy. `make transformers` writes this page.
"""


def main() -> None:
    """Try the models and write the page; exit with a message if one of them fails."""
    chosen = sys.argv[1:]
    selected = [case for case in cases() if not chosen or case.model_type in chosen or case.class_name in chosen]
    free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
    for _ in range(LANES):
        free.put(_Lane())

    def verdict(case: Case) -> Verdict:
        lane = free.get()
        try:
            return lane.verdict(case)
        finally:
            free.put(lane)

    with ThreadPoolExecutor(LANES) as pool:
        verdicts = list(tqdm(pool.map(verdict, selected), total=len(selected), disable=None))
    for _ in range(LANES):
        free.get().close()
    if chosen:
        print("\n".join(map(str, verdicts)))
    else:
        with new_file(PAGE) as new:
            new.write_text(page(verdicts), encoding="utf-8")
    faults = [f"{v.case.class_name}: {v.text}" for v in verdicts if v.kind == "fault"]
    if faults:
        sys.exit("\n".join(faults))


class _Lane:
    """A process that tries one model after another; it is replaced when a model crashes it or takes too long."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.tried = 0

    def verdict(self, case: Case) -> Verdict:
        """Try a model."""
        if self.process is None or self.tried == CASES:
            self.close()
            command = [sys.executable, "-m", "tools.transformers_trials"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.tried = 0
        self.tried += 1
        process: Any = self.process
        process.stdin.write(f"{case.class_name}\n")
        process.stdin.flush()
        is_ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if is_ready else ""
        if line:
            verdict = Verdict(case, *json.loads(line))
        else:
            process.kill()
            reason = f"its process ended with {process.wait()}" if is_ready else f"takes longer than {SECONDS} seconds"
            verdict = Verdict(case, "fault", reason)
            self.process = None
        tqdm.write(f"{verdict.kind:8} {case.class_name} {verdict.text}", file=sys.stderr)
        return verdict

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def page(verdicts: list[Verdict]) -> str:
    """Format the page: a summary, then a table for each task, then the models that could not be built."""
    import transformers

    kinds = {"right": "right", "refused": "refused", "fault": "fault", "unbuilt": "not built"}
    lines = [HEADER.format(version=transformers.__version__), f"| models | tried | {' | '.join(kinds.values())} |"]
    lines.append("|---" * (2 + len(kinds)) + "|")
    for task in TASKS:
        counts = Counter(v.kind for v in verdicts if v.case.task == task)
        lines.append(f"| {task} | {counts.total()} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    for task in TASKS:
        lines += [
            "",
            f"## {task}",
            "",
            "| model | layers | removable | outcome | folder | stays, and why |",
            "|---" * 6 + "|",
        ]
        for v in verdicts:
            if v.case.task == task and v.kind != "unbuilt":
                outcome = "right" if v.kind == "right" else f"{v.kind}: {v.text}"
                numbers = f"{v.layers or ''} | {v.removable if v.layers else ''}"
                lines.append(f"| {v.case.class_name} | {numbers} | {outcome} | {v.folder} | {v.stays} |")
    lines += [
        "",
        "## Not built",
        "",
        "No tiny config was found, or the dense model does not run on the generic input.",
        "",
    ]
    lines += [f"- {v.case.class_name}: {v.text}" for v in verdicts if v.kind == "unbuilt"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
