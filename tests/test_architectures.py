"""Networks of many libraries lose half of what can go; docs/architectures.md says how it went for all of them."""

import gc
from itertools import chain
from pathlib import Path

import architectures
import pytest
from architectures import LARGE, SMALL, Outcome, all_of_torchvision, check, some_of_timm
from tqdm import tqdm

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
HEADER = """# Architectures

Networks whose layers were found by one run (`sglp.find_layers`), without a word about their classes. Of each, half of
the layers that can go went (every second one). What was left gave, to the bit, the logits of the dense network in which
those layers hand on what they are given; it took a training step with finite gradients everywhere; and after `save` and
`load` it gave the same logits again, to the bit. In the formats named it was exported, for batches of any size, and
computed the same there (`sglp.export`). Weights are random: this is about structure, not about accuracy.

Layers are those besides the stem and the head. MACs are of one sample of the given shape. `make architectures` makes
this page, in twenty minutes on two cores.
"""


def _needs(case):
    if case.name.startswith("timm "):
        pytest.importorskip("timm", reason="timm is not installed")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name.replace(" ", "-"))
def test_half_of_what_can_go_goes(case):
    _needs(case)
    outcome = check(case)
    assert not outcome.sentence
    assert (outcome.layers, outcome.removable) == case.expected
    assert outcome.removed == outcome.removable // 2
    assert outcome.after < outcome.before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries' factories
def test_every_network_works_or_is_refused_in_a_sentence():
    pytest.importorskip("timm", reason="timm is not installed")
    cases = [*SMALL, *LARGE]
    listed = [_outcome(case, ("torch-export", "onnx")) for case in tqdm(cases, desc="listed", disable=None)]
    torchvision = [_outcome(case) for case in tqdm(all_of_torchvision(), desc="torchvision", total=80, disable=None)]
    timm = [_outcome(case) for case in tqdm(some_of_timm(), desc="timm", total=100, disable=None)]
    parts = {
        "The list": listed,
        "All classification models of torchvision": torchvision,
        "A hundred of timm's": timm,
    }
    PAGE.write_text(_page(parts), encoding="utf-8")
    faults = [f"{outcome.name}: {outcome.fault}" for outcome in chain(*parts.values()) if outcome.fault]
    assert not faults
    assert [(one.name, (one.layers, one.removable)) for one in listed] == [(one.name, one.expected) for one in cases]
    assert sum(not outcome.sentence for outcome in torchvision) >= 60


def _outcome(case, formats=()) -> Outcome:
    gc.collect()
    try:
        return check(case, formats)
    except Exception as error:  # one network's fault must not hide the others'
        return Outcome(case.name, "", fault=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _page(parts: dict[str, list[Outcome]]) -> str:
    lines = [HEADER, "| networks | tried | work | refused | fail |", "|---|---|---|---|---|"]
    for title, outcomes in parts.items():
        refused, failed = (sum(bool(getattr(o, field)) for o in outcomes) for field in ("sentence", "fault"))
        lines.append(f"| {title} | {len(outcomes)} | {len(outcomes) - refused - failed} | {refused} | {failed} |")
    for title, outcomes in parts.items():
        lines += ["", f"## {title}", ""]
        if title.startswith("A hundred"):
            most = architectures.MOST_PARAMETERS // 10**6
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
