"""Cut a batch's inputs into samples.

A tensor with as many rows as the batch has samples belongs to the samples. Any other one (position ids [1, tokens], a
mask [tokens, tokens]) is shared by all samples, and is never cut.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sglp.arguments import is_list_of_samples

Inputs = Any  # a tensor [samples, ...], a dict of keyword arguments, a tuple of arguments, or any other argument


def first_sample(inputs: Any) -> Any:
    """Return the first sample of a batch's inputs, as a batch of one; all inputs if they can't be cut safely."""
    return part_of(inputs, 0, 1) if can_be_cut(inputs) else inputs


def size_of(inputs: Inputs) -> int:
    """Count the samples in a batch's inputs.

    For several tensors it is the number of rows that most of them have; one row does not count, as it can be shared. A
    list has one item per sample, unless it holds tensors of equally many rows.
    """
    lengths = lengths_of(inputs)
    if isinstance(inputs, Mapping) and isinstance(ids := inputs.get("input_ids"), Tensor) and ids.ndim:
        return len(ids)
    counts = Counter(length for length in lengths if length != 1)  # in a tie, the first one
    return counts.most_common(1)[0][0] if counts else 1


def can_be_cut(inputs: Any) -> bool:
    """Whether each tensor has one row for each sample, or a single row for all."""
    return set(lengths_of(inputs)) <= {1, size_of(inputs)}


def part_of(value: Any, first: int, last: int) -> Any:
    """Return samples first to last - 1 of a batch's inputs."""
    return cut(value, first, last, size_of(value))


def cut(value: Any, first: int, last: int, samples: int) -> Any:
    """Return samples first to last - 1 of a value that belongs to a batch of `samples`; see `part_of`."""
    if isinstance(value, Tensor):
        return value[first:last] if value.ndim and len(value) == samples else value
    if isinstance(value, Mapping):
        return {key: cut(item, first, last, samples) for key, item in value.items()}
    if holds_samples(value) and len(value) == samples:
        return value[first:last]
    if isinstance(value, tuple | list):
        return like(value, [cut(item, first, last, samples) for item in value])
    return value


def lengths_of(value: Any) -> list[int]:
    """Return the numbers of rows of all tensors with a dimension, and of lists with one item per sample."""
    if isinstance(value, Tensor):
        return [len(value)] if value.ndim else []
    if isinstance(value, Mapping):
        return [length for item in value.values() for length in lengths_of(item)]
    if holds_samples(value):
        return [len(value)]
    if isinstance(value, tuple | list):
        return [length for item in value for length in lengths_of(item)]
    return []


def holds_samples(value: Any) -> bool:
    """Whether a value is a list with one item per sample; a list of numbers is an option."""
    is_data = isinstance(value, list) and any(isinstance(item, Tensor | Mapping | str) for item in value)
    return is_data and is_list_of_samples(value)


def like(value: Any, items: list) -> Any:
    """Return items in the kind of sequence that a value is."""
    if hasattr(value, "_make"):
        return value._make(items)
    return tuple(items) if isinstance(value, tuple) else items
