"""The first samples of whatever gives batches, in batches of another size."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from sglp.batches import size_of, slices
from sglp.errors import DataError


def first_samples(batches: Iterable, needed: Mapping[str, int]) -> list[tuple]:
    """As many batches as hold the most samples that are needed; no further one is asked for.

    Args:
        batches: pairs (inputs, target).
        needed: how many, by what they are for.

    Raises:
        DataError: there are fewer, or a batch is no such pair.
    """
    taken, count, samples = [], 0, max(needed.values())
    with tqdm(total=samples, desc="samples", unit="", disable=None) as bar:
        for batch in batches:
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise DataError(f"a batch must be a pair (inputs, target), but one is a {type(batch).__name__}")
            taken.append(tuple(batch))
            count += size_of(batch[0])
            bar.update(size_of(batch[0]))
            if count >= samples:
                return taken
    if not count:
        raise DataError("there is no batch of samples")
    large = " and ".join(f"{what}=({number}, ...)" for what, number in needed.items() if number > count)
    raise DataError(f"batches hold {count} samples, but there is {large}: ask for {count} at most")


def cut(batches: list[tuple], samples: int, size: int) -> Iterator[tuple]:
    """The first samples of batches, at most so many a batch; see `slices`.

    Raises:
        DataError: samples that would be in one batch have different shapes.
    """
    for some in slices(samples, size):
        parts, begin, end = [], some.start, some.stop
        for batch in batches:
            length = size_of(batch[0])
            if begin < length and end > 0:
                parts.append(_part(batch, max(begin, 0), end))
            begin, end = begin - length, end - length
        yield parts[0] if len(parts) == 1 else _joined(parts)


def _part(value, first: int, last: int):
    if isinstance(value, Tensor):
        return value[first:last] if value.ndim else value
    if isinstance(value, Mapping):
        return {key: _part(item, first, last) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_part(item, first, last) for item in value)
    return value


def _joined(parts: list):
    if isinstance(parts[0], Tensor) and parts[0].ndim:
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise DataError(
                f"samples of the shapes {' and '.join(str(list(shape)) for shape in shapes)} can't be in one batch: "
                "pad them to one shape, or ask for as many at a time as your batches have"
            )
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(items)) for items in zip(*parts, strict=True))
    return parts[0]
