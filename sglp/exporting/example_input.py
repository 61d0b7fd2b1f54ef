"""Inputs to run a network with, where only their shape counts: from a shape, or from a config of transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sglp.errors import ArchitectureError, first_line
from sglp.hugging_face.networks import configs_of, is_pretrained
from sglp.running import call, eval_mode

TOKENS = 64  # of a sequence, where no other length is asked for


def example_input(network: nn.Module, shape: Sequence[int] | None = None):
    """One sample that a network takes: of this shape, or as the config of a network of transformers says.

    Args:
        network: any module.
        shape: of a sample, without the batch: [channels, height, width] of an image, [tokens] of token ids. None where
            the network is one of transformers: its images then have its config's size, its texts 64 tokens.

    Returns:
        A tensor [1, *shape] of normal noise; for a network of transformers a dict of keyword arguments.

    Raises:
        ArchitectureError: the shape is needed, or the network can't take it.
    """
    drawn = torch.Generator().manual_seed(0)
    if is_pretrained(network):
        example = _of_config(network, shape, drawn)
    elif shape is None:
        raise ArchitectureError(
            f"it is not known which inputs this {type(network).__name__} takes: give the shape of one sample, as "
            "--input 3x224x224 (in a script, an example)"
        )
    else:
        example = torch.randn(1, *shape, generator=drawn).to(_precision(network))
    check_takes(network, example)
    return example


def check_takes(network: nn.Module, example) -> None:
    """Check that a network takes an input (a tensor, or a dict of keyword arguments) and returns logits.

    Raises:
        ArchitectureError: it does not.
    """
    try:
        with eval_mode(network), torch.no_grad():
            output = call(network, example)
    except Exception as error:  # whatever a network raises, the user needs one sentence
        shapes = " and ".join(str(list(value.shape)) for value in tensors_of(example).values())
        raise ArchitectureError(
            f"this {type(network).__name__} can't be run on inputs of the shape {shapes}: {first_line(error)}"
        ) from error
    if not isinstance(getattr(output, "logits", output), Tensor):
        raise ArchitectureError(f"this {type(network).__name__} returns a {type(output).__name__} instead of logits")


def tensors_of(example) -> dict[str, Tensor]:
    """The tensors of an input by their names; a tensor alone is "input"."""
    if isinstance(example, Tensor):
        return {"input": example}
    return {name: value for name, value in example.items() if isinstance(value, Tensor)}


def _of_config(network: nn.Module, shape: Sequence[int] | None, drawn: torch.Generator) -> dict:
    name = network.main_input_name
    if name == "input_ids":
        vocabulary = _stated(network, "vocab_size")
        if vocabulary:
            ids = torch.randint(vocabulary, (1, *(shape or (TOKENS,))), generator=drawn)
            return {name: ids, "use_cache": False} if hasattr(network.config, "use_cache") else {name: ids}
    size, channels = _stated(network, "image_size"), _stated(network, "num_channels")
    if shape is None and size and channels:
        shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
    if shape is None:
        raise ArchitectureError(
            f"the config of this {type(network).__name__} does not say which inputs it takes: give the shape of one "
            "sample, as --input 3x224x224 (in a script, an example)"
        )
    return {name: torch.randn(1, *shape, generator=drawn).to(_precision(network))}


def _precision(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _stated(network: nn.Module, name: str):
    """What a config or one inside of it says."""
    return next((value for part in configs_of(network.config) if (value := getattr(part, name, None))), None)
