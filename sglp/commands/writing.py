"""Write what ``sglp compress`` made: the network with its card, its plan and the report."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sglp
from sglp.checkpoints.model_card import CARD, Figures, card_of
from sglp.commands.making import Made
from sglp.commands.outcome import REPORT, page
from sglp.commands.samples import HELD_OUT, Samples
from sglp.errors import CheckpointError
from sglp.hugging_face.networks import is_pretrained
from sglp.running import call, logits_of

PLAN = "plan.json"


def facts(model: str, samples: Samples, made: Made, method: str, seed: int, heal: int) -> list[tuple[str, str]]:
    """Return how the network was made: labels and sentences."""
    result = made.result
    kept = sum(row.kept for row in result.reconstructed)
    refitted = f"{kept} of {len(result.reconstructed)} layers have new weights" if result.reconstructed else "no"
    rows = [
        ("dense network", model),
        ("samples", f"{samples.name}; {round(100 * HELD_OUT)} % of it is held out, to measure both networks"),
        ("method", f"{method}, {len(result.segments)} segments, seed {seed}"),
        ("removed layers", ", ".join(result.plan.removed)),
        ("reconstruction", refitted),
    ]
    return [*rows, *([("healing", f"{heal} steps of LoRA")] if heal else [])]


def write(out: Path, made: Made, samples: Samples, tokenizer: Any, lines: Sequence[tuple[str, str]]) -> None:
    """Write the network with its card, plan and report; the folder appears complete or not at all.

    Raises:
        SGLPError: the network can't be saved, or is not the same when loaded.
    """
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        folder = temporary / out.name
        network = made.network.cpu()
        sglp.save(network, folder, tokenizer)
        if not is_pretrained(network):  # otherwise `save` has loaded and compared it
            _check_reload(network, folder, samples.example())
        rows = made.rows(samples)
        metrics = {} if made.small.quality is None else {samples.quality: made.small.quality}
        figures = Figures(
            task=samples.task,
            dataset=Path(samples.name).name,
            measured="a held-out tenth",
            metrics=metrics | {"params": made.small.parameters},
            rows=rows,
            notes=[
                f"How it was made: {label}: {text}." for label, text in lines if label in ("method", "reconstruction")
            ],
        )
        (folder / CARD).write_text(card_of(folder, made.small.parameters, figures), encoding="utf-8")
        made.result.plan.save(folder / PLAN)
        title = f"{out.name}: {made.small.layers} of {made.dense.layers} layers"
        (folder / REPORT).write_text(page(title, lines, rows, made.result), encoding="utf-8")
        folder.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_reload(network: nn.Module, folder: Path, example: Any) -> None:
    """Load a folder that was just written, and compare outputs bit for bit."""
    loaded = sglp.load(folder, trust=True)
    with torch.no_grad():
        same = torch.equal(logits_of(call(network, example)), logits_of(call(loaded, example)))
    if not same:
        raise CheckpointError(f"this {type(network).__name__} does not give the same outputs when it is loaded again")
