"""The steps of ``sglp compress`` before anything is written: check, open, and make the smaller network."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import sglp
from sglp.commands.outcome import REPORT, Network, table, text_of
from sglp.commands.samples import Samples
from sglp.compression import Compressed
from sglp.cost import count_parameters
from sglp.errors import SGLPError


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

    def rows(self, samples: Samples) -> list[tuple[str, str, str, str]]:
        """Return the table of both networks."""
        return table(self.dense, self.small, samples.quality, samples.unit)

    def text(self, samples: Samples, out: str | None) -> str:
        """Return the table and a list of the removed layers, as text."""
        lines = [text_of(self.rows(samples)), "", f"removed layers: {', '.join(self.result.plan.removed)}"]
        return "\n".join([*lines, *([] if out is None else [f"written to {out}; see {Path(out) / REPORT}"])])

    def summary(self, samples: Samples, out: str | None) -> dict[str, Any]:
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


def opened(model: str, text: str | None, images: str | None, seed: int, **how: Any) -> tuple[nn.Module, Any, Samples]:
    """Return the network, its tokenizer (None for images) and the samples.

    Raises:
        SGLPError: the network or the samples can't be read, or don't fit each other.
    """
    from sglp.commands.image_samples import ImageSamples
    from sglp.commands.networks import open_image_network, open_language_model
    from sglp.commands.text_samples import TextSamples

    if text is not None:
        network, tokenizer = open_language_model(model, how["revision"])
        return network, tokenizer, TextSamples(text, how["column"], how["length"], network, tokenizer)  # type: ignore[arg-type]
    network, view = open_image_network(model, how["kwargs"], how["weights"], how["revision"], how["trust"])
    view = view.changed(how["size"], how["mean"], how["std"])
    return network, None, ImageSamples(str(images), view, network, seed)


def make(
    network: nn.Module,
    samples: Samples,
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
