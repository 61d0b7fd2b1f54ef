"""Example inputs, of which only the shape matters, from a given shape or from the config of a Hugging Face model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sglp.errors import ArchitectureError, first_line
from sglp.exporting.example_shapes import tensors_of
from sglp.exporting.outputs import named_outputs
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
        if shape is None:
            try:
                check_takes(network, example)
            except ArchitectureError as error:
                raise ArchitectureError(
                    f"{error}: these inputs follow from its config, so pass the shape of one sample instead, such as "
                    "--input 3x224x224 (in a script, an example)"
                ) from error
            return example
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
    """Check that a network accepts an input and returns tensors.

    Raises:
        ArchitectureError: the network fails on this input, or returns no tensor.
    """
    try:
        with eval_mode(network), torch.no_grad():
            output = call(network, example)
    except Exception as error:  # report any error of a network in one sentence
        shapes = " and ".join(str(list(value.shape)) for value in tensors_of(example).values())
        raise ArchitectureError(
            f"this {type(network).__name__} can't be run on inputs of the shape {shapes}: {first_line(error)}"
        ) from error
    if not named_outputs(output):
        raise ArchitectureError(f"this {type(network).__name__} returns a {type(output).__name__} without tensors")


def longest_text(network: "PreTrainedModel") -> int | None:
    """Return the largest number of tokens that the config of a Hugging Face model allows, or None.

    In models such as RoBERTa, positions begin after the index of padding.
    """
    longest = _config_value(network, "max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:  # XLNet has -1
        return None
    embeddings = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    starts = [e.padding_idx + 1 for e in embeddings if e.num_embeddings == longest and e.padding_idx is not None]
    is_vocabulary = longest == _config_value(network, "vocab_size")
    return longest - max(starts, default=0) * (not is_vocabulary)


def _example_from_config(
    network: "PreTrainedModel", shape: Sequence[int] | None, generator: torch.Generator
) -> dict[str, Any]:
    name = network.main_input_name
    if name == "input_ids":
        vocab_size = _config_value(network, "vocab_size")
        if vocab_size:
            length = min(TOKENS, longest_text(network) or TOKENS)
            ids = torch.randint(vocab_size, (1, *(shape or (length,))), generator=generator)
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
