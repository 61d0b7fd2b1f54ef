"""Model cards: the README.md of a saved network, with the removed layers, the results and how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglp.record import ARCHITECTURE, Architecture, is_known_library, saved_architecture

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2410.14720"


@dataclass(frozen=True)
class Figures:
    """The measurements of a saved network, next to those of the dense one.

    Attributes:
        task: the hub's name of the task, such as "image-classification".
        dataset: the data that the networks were evaluated on.
        measured: the part of the data, in words, such as "450 test samples", or "".
        metrics: the exact values for the saved network, by name.
        rows: label, dense network, saved network and change, as text.
        notes: sentences about how the network was made.
    """

    task: str
    dataset: str
    measured: str
    metrics: Mapping[str, float]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def card_of(folder: str | Path, parameters: int | None, figures: Figures | None = None, command: str = "") -> str:
    """Return the model card of a saved network; see `model_card`.

    Args:
        folder: a folder that `save` wrote; only architecture.json is read.
        parameters: the number of parameters, or None if it is not known.
        figures: the measurements, if there are any.
        command: the command that reproduces the network, if it is known.

    Raises:
        CheckpointError: the folder does not contain a saved network.
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
    """Return a model card in the form of the Hugging Face hub: metadata in YAML, then Markdown.

    The same network and measurements always give the same text.

    Args:
        architecture: how the network is built and which layers were removed.
        parameters: the number of parameters, or None if it is not known.
        figures: the measurements, if there are any.
        command: the command that reproduces the network, if it is known.
        not_plain: why plain `from_pretrained` can't load a Hugging Face model, as a sentence without a period.
    """
    kind = architecture.factory.partition(":")[2]
    base = architecture.base_model
    kept, removed = architecture.kept, architecture.removed
    plain = architecture.factory.startswith("transformers:") and not not_plain
    name = base.partition("/")[2] or kind
    name += f" without {len(removed)} of {len(kept) + len(removed)} layers" if removed else ""
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"a {kind}"
    header = ["library_name: " + ("transformers" if plain else "sglp"), *([f"base_model: {base}"] if base else [])]
    header += ["tags:", "- sglp", *(["- layer-pruning"] if removed else [])]
    lines = ["---", *header, *(_model_index(name, figures) if figures else []), "---", "", f"# {name}", ""]
    if removed:
        lines += [
            f"This is {origin} with whole layers removed: an ordinary, shallower {kind}.",
            "",
            f"- Removed layers: {_names(removed)}",
            f"- Kept layers: {_names(kept)}",
        ]
    else:
        lines += [f"This is {origin} with all its layers.", ""]
    lines += [*([] if parameters is None else [f"- Parameters: {parameters:,}"]), ""]
    lines += [line for note in (figures.notes if figures else ()) for line in (note, "")]
    if figures:
        lines += [
            "## Results",
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
            "## Reproduce",
            "",
            "Run this in the project that made the network, with all other parameters unchanged:",
            "",
            "```",
            command,
            "```",
            "",
        ]
    lines += ["## Use", "", *_use(architecture, plain), ""]
    lines += [f"Plain `from_pretrained` can't load this folder: {not_plain}.", ""] if not_plain else []
    lines += [f"Layer names refer to the dense network. Made with SGLP ([paper]({PAPER}))."]
    return "\n".join(lines) + "\n"


def _model_index(name: str, figures: Figures) -> list[str]:
    """Return the `model-index` of the hub: the results in machine-readable form."""
    name = json.dumps(name, ensure_ascii=False)
    dataset = json.dumps(figures.dataset, ensure_ascii=False)
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
    """Format a number so that every YAML reader takes it for a number: YAML 1.1 reads 5e-05 as a string."""
    text = repr(number)
    return text if "." in text else text.replace("e", ".0e")


def _use(architecture: Architecture, plain: bool) -> list[str]:
    """Return the lines of Python that load the network."""
    factory = architecture.factory
    kind = factory.partition(":")[2]
    if plain:
        lines = [f"from transformers import {kind}", "", f'network = {kind}.from_pretrained("this folder")']
    else:
        is_known = factory.startswith("transformers:") or is_known_library(factory)
        trust = "" if is_known else f', trust=["{factory}"]'
        lines = ["import sglp", "", f'network = sglp.load("this folder"{trust})']
    return ["```python", *lines, "```"]


def _names(layers: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in layers)
