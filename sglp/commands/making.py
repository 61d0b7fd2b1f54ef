"""The steps of ``sglp compress``: check, open, make the smaller network, and write it."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import sglp
from sglp.checkpoints.model_card import CARD, Figures, card_of
from sglp.commands.outcome import Network, page, table, text_of
from sglp.commands.samples import HELD_OUT, ImageSamples, TextSamples
from sglp.compression import Compressed
from sglp.cost import count_parameters
from sglp.errors import CheckpointError, SGLPError
from sglp.hugging_face.networks import is_pretrained
from sglp.running import call, logits_of

REPORT, PLAN = "report.html", "plan.json"


class Made(NamedTuple):
    """The smaller network and what is known about it.

    Attributes:
        network: in the precision that the dense network was stored in.
        dense, small: sizes and quality of both networks.
        result: what `sglp.compress` returned.
    """

    network: nn.Module
    dense: Network
    small: Network
    result: Compressed

    def rows(self, samples: TextSamples | ImageSamples) -> list[tuple[str, str, str, str]]:
        """Return the table of both networks."""
        return table(self.dense, self.small, samples.quality, samples.unit)

    def text(self, samples: TextSamples | ImageSamples, out: str | None) -> str:
        """Return the table and a list of the removed layers, as text."""
        lines = [text_of(self.rows(samples)), "", f"removed layers: {', '.join(self.result.plan.removed)}"]
        return "\n".join([*lines, *([] if out is None else [f"written to {out}; see {Path(out) / REPORT}"])])

    def summary(self, samples: TextSamples | ImageSamples, out: str | None) -> dict[str, Any]:
        """Return the same for programs."""
        plan = self.result.plan
        networks = {"dense": self.dense._asdict(), "small": self.small._asdict()}
        return {"out": out, "measured": samples.quality, **networks, "kept": plan.kept, "removed": plan.removed}


def check(text: str | None, images: str | None, out: str | None, dry_run: bool, heal: int) -> None:
    """Check arguments that exclude or need each other, before anything is loaded.

    Raises:
        SGLPError: the message says what would be right.
    """
    if (text is None) == (images is None):
        raise SGLPError("pass either --text with texts for a language model, or --images with a folder of images")
    if heal and images is not None:
        raise SGLPError("--heal trains adapters of a language model: fine-tune an image classifier in your own code")
    if dry_run:
        return
    if out is None:
        raise SGLPError("pass --out with the folder to write, or --dry-run to see the plan alone")
    if Path(out).exists() or Path(out).is_symlink():
        raise SGLPError(f"--out={out} exists: give a folder that does not exist yet, or remove it first")
    parent = Path(out).absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise SGLPError(f"--out={out} can't be written: {parent} is not a folder that you may write to")


def opened(
    model: str, text: str | None, images: str | None, seed: int, **how: Any
) -> tuple[nn.Module, Any, TextSamples | ImageSamples]:
    """Return the network, its tokenizer (None for images) and the samples.

    Raises:
        SGLPError: the network or the samples can't be read, or don't fit each other.
    """
    from sglp.commands.networks import open_image_network, open_language_model

    if text is not None:
        network, tokenizer = open_language_model(model, how["revision"])
        return network, tokenizer, TextSamples(text, how["column"], how["length"], network, tokenizer)  # type: ignore[arg-type]
    network, view = open_image_network(model, how["kwargs"], how["weights"], how["revision"], how["trust"])
    view = view.changed(how["size"], how["mean"], how["std"])
    return network, None, ImageSamples(str(images), view, network, seed)


def make(
    network: nn.Module,
    samples: TextSamples | ImageSamples,
    *,
    remove: float,
    target: dict[str, float] | None,
    method: str,
    k: Any,
    seed: int,
    reconstruct: bool,
    heal: int,
    measure: bool,
) -> Made:
    """Compress the network by `sglp.compress`, heal it, and measure both networks.

    Args:
        network: the dense network.
        samples: the texts or images.
        remove, target, method, k, seed, reconstruct: see `sglp.compress`; `remove` is its `prune_ratio`.
        heal: steps of LoRA.
        measure: whether quality is measured.

    Raises:
        SGLPError: see `sglp.compress` and `heal`.
    """
    if heal:
        from sglp.commands.healing import check_steps

        check_steps(samples, heal)  # type: ignore[arg-type]
    stored = {name: parameter.dtype for name, parameter in network.named_parameters()}
    network = _computing(network)
    macs = samples.macs(network)
    parameters = count_parameters(network)
    quality = samples.measure(network) if measure else None
    sizes = samples.sizes
    result = sglp.compress(
        network, samples.batches(seed), k=k, prune_ratio=remove, target=target, method=method, seed=seed,
        calibration=sizes.calibration, scoring=sizes.scoring, recalibration=sizes.calibration,
        reconstruct=reconstruct, reconstruction=sizes.reconstruction, pooling=sizes.pooling,
    )  # fmt: skip
    dense = Network(len(result.layers), parameters, macs, quality)
    small = result.network
    if heal:
        from sglp.commands.healing import heal as train_adapters

        small = train_adapters(small, samples, heal, seed)  # type: ignore[arg-type]
    _store_as(small, stored)
    _computing(small)
    quality = samples.measure(small) if measure else None
    after = Network(len(result.plan.kept), count_parameters(small), samples.macs(small), quality)
    _store_as(small, stored)
    return Made(small, dense, after, result)


def _computing(network: nn.Module) -> nn.Module:
    """Move a network to the GPU, or to the precision that processors compute fast in."""
    return network.cuda() if torch.cuda.is_available() else network.float()


def _store_as(network: nn.Module, stored: dict[str, torch.dtype]) -> None:
    """Give parameters the precision that they came in. Layers have new numbers, but all of them one precision."""
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(stored.get(name, parameter.dtype))


def facts(
    model: str, samples: TextSamples | ImageSamples, made: Made, method: str, seed: int, heal: int
) -> list[tuple[str, str]]:
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


def write(
    out: Path, made: Made, samples: TextSamples | ImageSamples, tokenizer: Any, lines: Sequence[tuple[str, str]]
) -> None:
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
            task="image-classification" if isinstance(samples, ImageSamples) else "text-generation",
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
