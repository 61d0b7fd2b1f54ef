"""Example inputs, of which only the shape matters, from a given shape or from the config of a Hugging Face model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sglp.errors import ArchitectureError, first_line
from sglp.hugging_face.networks import configs_of, is_pretrained
from sglp.running import call, eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 64  # default length of a sequence


def example_input(network: nn.Module, shape: Sequence[int] | None = None) -> Any:
    """Draw a random input for a network.

    Args:
        network: any module.
        shape: the shape of one sample, without the batch dimension: [channels, height, width] of an image, [tokens] of
            token ids. None for a Hugging Face model: images then have the size in its config, texts have 64 tokens.

    Returns:
        A tensor [1, *shape] of normal noise; for a Hugging Face model, a dict of keyword arguments.

    Raises:
        ArchitectureError: the shape is needed, or the network can't take an input of this shape.
    """
    generator = torch.Generator().manual_seed(0)
    example: Any
    if is_pretrained(network):
        example = _example_from_config(network, shape, generator)
    elif shape is None:
        raise ArchitectureError(
            f"it is not known which inputs this {type(network).__name__} takes: pass the shape of one sample, such as "
            "--input 3x224x224 (in a script, an example)"
        )
    else:
        example = torch.randn(1, *shape, generator=generator).to(_precision(network))
    check_takes(network, example)
    return example


def check_takes(network: nn.Module, example: Any) -> None:
    """Check that a network accepts an input (a tensor, or a dict of keyword arguments) and returns logits.

    Raises:
        ArchitectureError: the network fails on this input, or returns something else.
    """
    try:
        with eval_mode(network), torch.no_grad():
            output = call(network, example)
    except Exception as error:  # report any error of a network in one sentence
        shapes = " and ".join(str(list(value.shape)) for value in tensors_of(example).values())
        raise ArchitectureError(
            f"this {type(network).__name__} can't be run on inputs of the shape {shapes}: {first_line(error)}"
        ) from error
    if not isinstance(getattr(output, "logits", output), Tensor):
        raise ArchitectureError(f"this {type(network).__name__} returns a {type(output).__name__} instead of logits")


def tensors_of(example: Any) -> dict[str, Tensor]:
    """Return the tensors of an input by name; a single tensor gets the name "input"."""
    if isinstance(example, Tensor):
        return {"input": example}
    return {name: value for name, value in example.items() if isinstance(value, Tensor)}


def _example_from_config(
    network: "PreTrainedModel", shape: Sequence[int] | None, generator: torch.Generator
) -> dict[str, Any]:
    name = network.main_input_name
    if name == "input_ids":
        vocab_size = _config_value(network, "vocab_size")
        if vocab_size:
            ids = torch.randint(vocab_size, (1, *(shape or (TOKENS,))), generator=generator)
            return {name: ids, "use_cache": False} if hasattr(network.config, "use_cache") else {name: ids}
    size = _config_value(network, "image_size")
    channels = _config_value(network, "num_channels")
    if shape is None and size and channels:
        shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    if shape is None:
        raise ArchitectureError(
            f"the config of this {type(network).__name__} does not say which inputs it takes: pass the shape of one "
            "sample, such as --input 3x224x224 (in a script, an example)"
        )
    return {name: torch.randn(1, *shape, generator=generator).to(_precision(network))}


def _precision(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _config_value(network: "PreTrainedModel", name: str) -> Any:
    """Return the first value that is set in the model's config or in one nested in it, or None."""
    return next((value for part in configs_of(network.config) if (value := getattr(part, name, None))), None)
