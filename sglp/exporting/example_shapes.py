"""Which dimensions of an example's tensors are samples or tokens, and random inputs of other sizes like the example."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglp.cutting import size_of

KEEP = object()


class Sizes(NamedTuple):
    """The numbers of samples and of tokens of an example; no tokens: None."""

    samples: int
    tokens: int | None


class Dims(NamedTuple):
    """The dimensions of a tensor that are samples (0 or none) and tokens."""

    samples: bool
    tokens: tuple[int, ...]


def sizes_of(example: Any) -> Sizes:
    """Return the sizes of an example: a tensor, a dict of arguments, a tuple of arguments, or a tuple of one dict."""
    named = example[0] if isinstance(example, tuple) and len(example) == 1 else example
    ids = named.get("input_ids") if isinstance(named, Mapping) else None
    is_text = isinstance(ids, Tensor) and ids.ndim == 2
    return Sizes(size_of(named), ids.shape[1] if isinstance(ids, Tensor) and is_text else None)


def dims_of(value: Tensor, sizes: Sizes) -> Dims:
    """Find the dimensions of one of the example's tensors.

    A tensor with another number of rows than there are samples is shared by them, as position ids [1, tokens] are.
    """
    has_samples = value.ndim > 0 and len(value) == sizes.samples
    if sizes.tokens is None:
        return Dims(has_samples, ())
    if not has_samples:
        return Dims(False, tuple(i for i, size in enumerate(value.shape) if size == sizes.tokens > 1))
    square = value.ndim == 4 and value.shape[2:] == (sizes.tokens, sizes.tokens)  # a mask
    per_token = value.ndim > 1 and value.shape[1] == sizes.tokens
    return Dims(True, (2, 3) if square else (1,) if per_token else ())


def mapped(function: Callable[[str, Tensor], Any], inputs: Any, name: str = "", other: Any = KEEP) -> Any:
    """Apply a function of a name and a tensor to all tensors of inputs, and return a value of the same structure.

    Args:
        function: called with each tensor and its name.
        inputs: tensors in dicts, tuples and lists.
        name: the name of the inputs, which those inside begin with.
        other: what replaces everything that is not a tensor.
    """
    if isinstance(inputs, Tensor):
        return function(name or "input", inputs)
    if isinstance(inputs, Mapping):
        return {
            key: mapped(function, value, f"{name}.{key}" if name else str(key), other) for key, value in inputs.items()
        }
    if isinstance(inputs, tuple | list):
        alone = len(inputs) == 1 and not isinstance(inputs[0], Tensor)
        names = [name if alone else f"{name}.{i}" if name else f"input_{i}" for i in range(len(inputs))]
        return type(inputs)(mapped(function, value, key, other) for key, value in zip(names, inputs, strict=True))
    return inputs if other is KEEP else other


def holds_tensors(value: Any) -> bool:
    """Check whether a value is a tensor or contains one."""
    return bool(tensors_of(value))


def tensors_of(example: Any) -> dict[str, Tensor]:
    """Return the tensors of an input by name; a single tensor gets the name "input"."""
    tensors: dict[str, Tensor] = {}
    mapped(lambda name, value: tensors.update({name: value}), example)
    return tensors


def random_inputs(example: Any, samples: int, seed: int, tokens: int | None = None) -> Any:
    """Draw a batch of random inputs like an example: normal noise, or for integers and masks, samples of the example.

    Args:
        example: a tensor [samples, ...], a dict of keyword arguments, or a tuple of arguments.
        samples: the number of samples to draw.
        seed: the seed of the draw.
        tokens: the length of token ids, if it is not the example's.

    Returns:
        Inputs in the structure of the example.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes_of(example)

    def draw(name: str, value: Tensor) -> Tensor:
        dims = dims_of(value, sizes)
        for dim in dims.tokens:
            length = tokens or value.shape[dim]
            value = value.index_select(dim, torch.arange(length) % value.shape[dim])
        if not dims.samples:
            return value
        if value.is_floating_point() and "mask" not in name:
            return torch.randn(samples, *value.shape[1:], generator=generator).to(value.dtype)
        if name.endswith("input_ids"):  # any token may be at any position
            return value.flatten()[torch.randint(value.numel(), (samples, *value.shape[1:]), generator=generator)]
        return value[torch.randint(len(value), (samples,), generator=generator)]

    return mapped(draw, example)
