"""Write docs/architectures.md: try every classification model of torchvision and a hundred of timm.

``python -m tools.architectures`` takes about twenty minutes on two cores.
"""

import gc
import sys
import warnings
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from sglp.files import new_file
from tools.architecture_trials import LARGE, MOST_PARAMETERS, SMALL, Outcome, all_of_torchvision, check, some_of_timm

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
HEADER = """# Architectures

Networks whose layers were found by running them once (`sglp.find_layers`); nothing is known of their classes. Half of
the removable layers of each network (every second one) were removed. The pruned network gave, bit for bit, the logits
of the dense network with those layers bypassed. It took a training step with finite gradients everywhere, and after
`save` and `load` it gave the same logits again, bit for bit. It was exported to the formats in the table, for batches
of any size, and the exported file computed the same (`sglp.export`). Weights are random: this page is about structure,
not about accuracy.

The columns count layers without the stem and the head. MACs are those of one sample of the given shape. `make
architectures` writes this page; it takes twenty minutes on two cores.
"""


def main() -> None:
    """Try all networks and write the page; exit with a message if one of them fails."""
    warnings.simplefilter("ignore")  # of the libraries' factories
    listed = [_outcome(case, ("torch-export", "onnx")) for case in tqdm([*SMALL, *LARGE], desc="listed", disable=None)]
    torchvision = [_outcome(case) for case in tqdm(all_of_torchvision(), desc="torchvision", total=80, disable=None)]
    timm = [_outcome(case) for case in tqdm(some_of_timm(), desc="timm", total=100, disable=None)]
    parts = {
        "The list": listed,
        "All classification models of torchvision": torchvision,
        "A hundred of timm's": timm,
    }
    with new_file(PAGE) as new:
        new.write_text(page(parts), encoding="utf-8")
    faults = [f"{outcome.name}: {outcome.fault}" for outcome in chain(*parts.values()) if outcome.fault]
    if faults:
        sys.exit("\n".join(faults))


def _outcome(case, formats=()) -> Outcome:
    gc.collect()
    try:
        return check(case, formats)
    except Exception as error:  # one network's fault must not hide the others'
        return Outcome(case.name, "", fault=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def page(parts: dict[str, list[Outcome]]) -> str:
    """Format the page: a summary, then a table for each part, then what was refused or failed."""
    lines = [HEADER, "| networks | tried | work | refused | fail |", "|---|---|---|---|---|"]
    for title, outcomes in parts.items():
        refused, failed = (sum(bool(getattr(o, field)) for o in outcomes) for field in ("sentence", "fault"))
        lines.append(f"| {title} | {len(outcomes)} | {len(outcomes) - refused - failed} | {refused} | {failed} |")
    for title, outcomes in parts.items():
        lines += ["", f"## {title}", ""]
        if title.startswith("A hundred"):
            most = MOST_PARAMETERS // 10**6
            lines += [
                f"The first hundred of a seeded draw from all its models that have at most {most} M parameters.",
                "",
            ]
        exported = any(o.exported for o in outcomes)
        columns = ["network", "input", "layers", "removable", "removed", "MACs before", "after", "equal after reload"]
        columns += ["exported"] if exported else []
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [_row(o, exported) for o in outcomes if not o.sentence and not o.fault]
        for kind, field in (("Refused", "sentence"), ("Failed", "fault")):
            found = [f"- {o.name}: {getattr(o, field)}" for o in outcomes if getattr(o, field)]
            lines += ["", f"{kind}:", "", *found] if found else []
    return "\n".join(lines) + "\n"


def _row(o: Outcome, exported: bool) -> str:
    counts = f"{o.layers} | {o.removable} | {o.removed} | {_millions(o.before)} | {_millions(o.after)}"
    return f"| {o.name} | {o.size} | {counts} | yes |{f' {o.exported} |' if exported else ''}"


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.0f} M" if macs >= 1e8 else f"{macs / 1e6:.3g} M"


if __name__ == "__main__":
    main()
