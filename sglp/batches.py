"""A batch: its inputs, alone or with their targets; its samples; batches of another size."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from sglp.errors import DataError, ScoringError


def inputs_of(batch):
    """The inputs of a batch: of a pair (inputs, target) the first, else the batch itself (a tensor or a dict)."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def even_slices(samples: int, size: int) -> list[slice]:
    """Where samples are cut into as few batches as possible of at most so many, all but alike in size.

    What is averaged over batches would otherwise count the samples of a small last one more than others.
    """
    count = -(-samples // size)
    return [slice(samples * i // count, samples * (i + 1) // count) for i in range(count)]


def at_least_one(batches: Iterable, what: str = "score layers with") -> Iterator:
    """The same batches.

    Raises:
        ScoringError: there is none to do this with.
    """
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ScoringError(f"there is no batch to {what}")


def first_sample(inputs):
    """The first sample of the inputs of a batch, as a batch."""
    if isinstance(inputs, Mapping):
        return {key: v[:1] if isinstance(v, Tensor) and v.ndim else v for key, v in inputs.items()}
    return inputs[:1]


def size_of(inputs) -> int:
    """The number of samples in the inputs of a batch: of a dict, the length of its first tensor that has one."""
    if not isinstance(inputs, Mapping):
        return len(inputs)
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim)


def to_device(batch, device: torch.device):
    """The same batch with all its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")  # the CPU would go on before it has the values
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch


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


def rebatch(batches: list[tuple], samples: int, size: int) -> Iterator[tuple]:
    """The first samples of batches, at most so many a batch; see `even_slices`.

    Raises:
        DataError: samples that would be in one batch have different shapes.
    """
    for some in even_slices(samples, size):
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
