"""The README.md of a saved network: what was taken out of what, what was measured of it, and how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglp.record import ARCHITECTURE, Architecture, of_known_library, saved_architecture

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2410.14720"


@dataclass(frozen=True)
class Figures:
    """What was measured of a saved network, and of the dense one beside it.

    Attributes:
        task: what the networks do, in the hub's words, as "image-classification".
        dataset: what it was measured on.
        measured: on how much of it, in words, as "450 test samples", or "".
        metrics: of the saved network, by name and exact.
        rows: label, dense network, saved network and change, as text.
    """

    task: str
    dataset: str
    measured: str
    metrics: Mapping[str, float]
    rows: Sequence[Sequence[str]]


def card_of(folder, parameters: int | None, figures: Figures | None = None, command: str = "") -> str:
    """The model card of a saved network; see `model_card`.

    Args:
        folder: what `save` wrote; of it only architecture.json is read.
        parameters: how many parameters the network has, if that is known.
        figures: what was measured.
        command: what makes it again.

    Raises:
        CheckpointError: the folder holds no saved network.
    """
    architecture = saved_architecture(folder)
    reason = json.loads((Path(folder) / ARCHITECTURE).read_text(encoding="utf-8")).get("not_plain", "")
    return model_card(architecture, parameters, figures, command, reason)


def model_card(
    architecture: Architecture,
    parameters: int | None,
    figures: Figures | None = None,
    command: str = "",
    not_plain: str = "",
) -> str:
    """A model card as the Hugging Face hub reads it (metadata in YAML, then Markdown); the same for the same network.

    Args:
        architecture: how the network is built and which layers went.
        parameters: how many parameters are left, if that is known.
        figures: what was measured, where something was.
        command: what makes the network again, where that is known.
        not_plain: why plain `from_pretrained` can't read a network of transformers, as a sentence without a period.
    """
    kind, base = architecture.factory.partition(":")[2], architecture.base_model
    kept, removed = architecture.kept, architecture.removed
    plain = architecture.factory.startswith("transformers:") and not not_plain
    name = base.partition("/")[2] or kind
    name += f" without {len(removed)} of {len(kept) + len(removed)} layers" if removed else ""
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"a {kind}"
    header = ["library_name: " + ("transformers" if plain else "sglp"), *([f"base_model: {base}"] if base else [])]
    header += ["tags:", "- sglp", *(["- layer-pruning"] if removed else [])]
    lines = ["---", *header, *(_index(name, figures) if figures else []), "---", "", f"# {name}", ""]
    if removed:
        lines += [
            f"Whole layers were taken out of {origin}; what is left is an ordinary, shallower {kind}.",
            "",
            f"- Layers that went: {_names(removed)}",
            f"- Layers that stayed: {_names(kept)}",
        ]
    else:
        lines += [f"All layers of {origin}.", ""]
    lines += [*([] if parameters is None else [f"- Parameters: {parameters:,}"]), ""]
    if figures:
        lines += [
            "## Figures",
            "",
            f"Measured on {f'{figures.measured} of ' if figures.measured else ''}`{figures.dataset}`.",
            "",
            "| | dense | this network | change |",
            "|---|---:|---:|---:|",
            *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in figures.rows),
            "",
        ]
    if command:
        lines += [
            "## How it was made",
            "",
            "In the project that made it, with its other dials as they were:",
            "",
            "```",
            command,
            "```",
            "",
        ]
    lines += ["## Use", "", *_use(architecture, plain), ""]
    lines += [f"Plain `from_pretrained` can't read this folder: {not_plain}.", ""] if not_plain else []
    lines += [f"Names of layers are those of the dense network. Made by SGLP ([the method]({PAPER}))."]
    return "\n".join(lines) + "\n"


def _index(name: str, figures: Figures) -> list[str]:
    """The hub's `model-index`: results for programs."""
    name, dataset = (json.dumps(text, ensure_ascii=False) for text in (name, figures.dataset))
    return [
        "model-index:",
        f"- name: {name}",
        "  results:",
        "  - task:",
        f"      type: {figures.task}",
        "    dataset:",
        f"      name: {dataset}",
        f"      type: {dataset}",
        "    metrics:",
        *(f"    - type: {key}\n      value: {_yaml(value)}" for key, value in figures.metrics.items()),
    ]


def _yaml(number: float) -> str:
    """A number that no YAML takes for a word, as YAML 1.1 does 5e-05."""
    text = repr(number)
    return text if "." in text else text.replace("e", ".0e")


def _use(architecture: Architecture, plain: bool) -> list[str]:
    kind, factory = architecture.factory.partition(":")[2], architecture.factory
    if plain:
        lines = [f"from transformers import {kind}", "", f'network = {kind}.from_pretrained("this folder")']
    else:
        theirs = factory.startswith("transformers:") or of_known_library(factory)
        trust = "" if theirs else f', trust=["{factory}"]'
        lines = ["import sglp", "", f'network = sglp.load("this folder"{trust})']
    return ["```python", *lines, "```"]


def _names(layers: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in layers)
