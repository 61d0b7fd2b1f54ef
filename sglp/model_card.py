"""The README.md of a saved network: what was taken out of what, and how to load it."""

from sglp.architecture import Architecture

PAPER = "https://arxiv.org/abs/2410.14720"


def model_card(architecture: Architecture, parameters: int) -> str:
    """A model card as the Hugging Face hub reads it; the same for the same network.

    Args:
        architecture: how the network is built and which layers went.
        parameters: how many parameters are left.
    """
    kind, base = architecture.factory.partition(":")[2], architecture.base_model
    kept, removed = architecture.kept, architecture.removed
    header = ["library_name: transformers", *([f"base_model: {base}"] if base else []), "tags:", "- sglp"]
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"a {kind}"
    lines = ["---", *header, *(["- layer-pruning"] if removed else []), "---", ""]
    if removed:
        lines += [
            f"# {base.partition('/')[2] or kind} without {len(removed)} of {len(kept) + len(removed)} layers",
            "",
            f"Whole layers were taken out of {origin}; what is left is an ordinary, shallower {kind}.",
            "",
            f"- Layers that went: {_names(removed)}",
            f"- Layers that stayed: {_names(kept)}",
        ]
    else:
        lines += [f"# {base.partition('/')[2] or kind}", "", f"All layers of {origin}.", ""]
    lines += [
        f"- Parameters: {parameters:,}",
        "",
        "## Use",
        "",
        "```python",
        f"from transformers import {kind}",
        "",
        f'network = {kind}.from_pretrained("this folder")',
        "```",
        "",
        f"Names of layers are those of the dense network. Made by SGLP ([the method]({PAPER})).",
    ]
    return "\n".join(lines) + "\n"


def _names(layers: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in layers)
