"""Write docs/transformers.md: try every causal, masked and image model that transformers can build at a tiny size.

``python -m tools.transformers_models`` takes about an hour on two cores; names of model types restrict it, and it
then prints the outcomes instead.
"""

import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from sglp.files import new_file
from tools.transformers_trials import TASKS, Case, Verdict, cases, trial

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"
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
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(tqdm(pool.map(_limited, selected), total=len(selected), disable=None))
    if chosen:
        print("\n".join(map(str, verdicts)))
    else:
        with new_file(PAGE) as new:
            new.write_text(page(verdicts), encoding="utf-8")
    faults = [f"{v.case.class_name}: {v.text}" for v in verdicts if v.kind == "fault"]
    if faults:
        sys.exit("\n".join(faults))


def _limited(case: Case) -> Verdict:
    """Try a model in a process of its own, so that neither a crash nor an endless loop ends the sweep."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.transformers_trials"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=trial, args=(case, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            verdict = receiver.recv()
        else:
            verdict = Verdict(case, "fault", f"takes longer than {SECONDS} seconds")
    except EOFError:
        process.join()
        verdict = Verdict(case, "fault", f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    tqdm.write(f"{verdict.kind:8} {case.class_name} {verdict.text}", file=sys.stderr)
    return verdict


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
