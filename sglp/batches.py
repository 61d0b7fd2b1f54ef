"""Batches of inputs, with or without targets: their samples, their devices, and batches of another size."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sglp.errors import DataError, ScoringError

Inputs = Tensor | Mapping[str, Any]  # a tensor [samples, ...], or keyword arguments


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: the first item of a pair (inputs, target), else the batch itself."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def even_slices(samples: int, size: int) -> list[slice]:
    """Cut samples into as few batches as possible, of at most `size` samples each.

    Batch sizes differ by at most one, so that a mean over batches does not overweight a small last batch.
    """
    count = -(-samples // size)
    return [slice(samples * i // count, samples * (i + 1) // count) for i in range(count)]


def at_least_one(batches: Iterable, what: str = "score layers with") -> Iterator:
    """Yield the batches, and refuse an empty iterable.

    Raises:
        ScoringError: there is no batch; the message says what it is needed for.
    """
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ScoringError(f"there is no batch to {what}")


def first_sample(inputs: Any) -> Any:
    """Return the first sample of a batch's inputs, as a batch of one."""
    if isinstance(inputs, Mapping):
        return {key: v[:1] if isinstance(v, Tensor) and v.ndim else v for key, v in inputs.items()}
    return inputs[:1]


def size_of(inputs: Inputs) -> int:
    """Count the samples in a batch's inputs; for a dict, the length of its first tensor that has a dimension."""
    if not isinstance(inputs, Mapping):
        return len(inputs)
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim)


def padding_mask(inputs: Any) -> Tensor | None:
    """Return the attention mask [samples, tokens] of a batch's inputs, or None if there is none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all its tensors on a device."""
    if isinstance(batch, Tensor):
        # From a GPU to the CPU a copy must block: the CPU would go on before the values have arrived.
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch


def first_samples(batches: Iterable, needed: Mapping[str, int]) -> list[tuple]:
    """Read batches until they hold enough samples for every purpose; read no further batch.

    Args:
        batches: pairs (inputs, target).
        needed: number of samples by purpose.

    Raises:
        DataError: there are too few samples, or a batch is not such a pair.
    """
    taken: list[tuple] = []
    count, samples = 0, max(needed.values())
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
        raise DataError("the batches hold no samples")
    large = " and ".join(f"{what}=({number}, ...)" for what, number in needed.items() if number > count)
    raise DataError(f"the batches hold {count} samples, too few for {large}: ask for at most {count}")


def rebatch(batches: list[tuple], samples: int, size: int) -> Iterator[tuple]:
    """Yield the first samples of batches in batches of at most `size`; see `even_slices`.

    Raises:
        DataError: samples of different shapes would share a batch.
    """
    for new in even_slices(samples, size):
        parts, begin, end = [], new.start, new.stop
        for batch in batches:
            length = size_of(batch[0])
            if begin < length and end > 0:
                parts.append(part_of(batch, max(begin, 0), end))
            begin, end = begin - length, end - length
        yield parts[0] if len(parts) == 1 else _joined(parts)


def part_of(value: Any, first: int, last: int) -> Any:
    """Return samples first to last - 1 of a batch, or of its inputs."""
    if isinstance(value, Tensor):
        return value[first:last] if value.ndim else value
    if isinstance(value, Mapping):
        return {key: part_of(item, first, last) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(part_of(item, first, last) for item in value)
    return value


def _joined(parts: list) -> Any:
    if isinstance(parts[0], Tensor) and parts[0].ndim:
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise DataError(
                f"samples of the shapes {' and '.join(str(list(shape)) for shape in shapes)} can't share a batch: pad "
                "them to one shape, or use the batch size that your batches have"
            )
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(items)) for items in zip(*parts, strict=True))
    return parts[0]
