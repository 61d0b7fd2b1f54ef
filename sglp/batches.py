"""Batches of inputs, with or without targets: how they are read, their devices, and batches of another size."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sglp.cutting import cut, holds_samples, lengths_of, like, size_of
from sglp.errors import DataError, ScoringError


class WholeBatch(tuple):
    """A pair (inputs, target) that can't be cut into samples: a batch of graphs, packed patches of several images."""


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


def padding_mask(inputs: Any) -> Tensor | None:
    """Return which tokens count, bool [samples, tokens], from a batch's attention mask of two dimensions.

    None without such a mask, or if all tokens count.
    """
    if isinstance(inputs, tuple) and len(inputs) == 1:  # a dict as the only argument
        return padding_mask(inputs[0])
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    visible = mask != 0
    return None if bool(visible.all()) else visible


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all its tensors on a device."""
    if isinstance(batch, Tensor):
        # From a GPU to the CPU a copy must block: the CPU would go on before the values have arrived.
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return like(batch, [to_device(value, device) for value in batch])
    # An object of another library, such as a batch of graphs.
    return batch.to(device) if callable(getattr(batch, "to", None)) else batch


def first_samples(
    batches: Iterable, needed: Mapping[str, int], form: Callable[[Any], Any] = lambda inputs: inputs
) -> list[tuple]:
    """Read batches until they hold enough samples for every purpose; read no further batch.

    Args:
        batches: pairs (inputs, target).
        needed: number of samples by purpose.
        form: applied to the inputs of each batch.

    Raises:
        DataError: there are too few samples, or a batch is not such a pair.
    """
    taken: list[tuple] = []
    count, samples = 0, max(needed.values())
    with tqdm(total=samples, desc="samples", unit="", disable=None) as bar:
        for batch in batches:
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise DataError(f"a batch must be a pair (inputs, target), but one is a {type(batch).__name__}")
            target = batch[1]  # a detector's has one dict for each sample
            per_sample = isinstance(target, tuple) and any(isinstance(item, Mapping) for item in target)
            taken.append((form(batch[0]), list(target) if per_sample else target))
            count += _samples_in(taken[-1])
            bar.update(_samples_in(taken[-1]))
            if count >= samples:
                return taken
    if not count:
        raise DataError("the batches hold no samples")
    large = " and ".join(f"{what}=({number}, ...)" for what, number in needed.items() if number > count)
    raise DataError(f"the batches hold {count} samples, too few for {large}: ask for at most {count}")


def whole_if_needed(batches: list[tuple], alike: Callable[[Any, Any], bool]) -> list[tuple]:
    """Mark batches as `WholeBatch` if their tensors can't be cut into samples.

    A tensor with another number of rows than the batch has samples may be shared by all samples (a mask), or hold parts
    of each (edges, packed patches). It is shared if it is the same in all batches, and if the first sample gives the
    same outputs alone.

    Args:
        batches: pairs (inputs, target).
        alike: function of two inputs that runs both and compares the first sample's outputs.
    """
    if all(_fits(batch) for batch in batches):
        return batches
    others = [_shared(batch) for batch in batches]
    is_shared = all(_equal(others[0], other) for other in others[1:])
    targets_fit = all(set(lengths_of(batch[1])) <= {1, _samples_in(batch)} for batch in batches)
    first = batches[0]
    if is_shared and targets_fit and alike(cut(first[0], 0, 1, _samples_in(first)), first[0]):
        return batches
    return [WholeBatch(batch) for batch in batches]


def rebatch(batches: list[tuple], samples: int, size: int) -> Iterator[tuple]:
    """Yield the first samples of batches in batches of at most `size`; see `even_slices`.

    Batches that can't be cut are yielded as they are, until they hold as many samples.

    Raises:
        DataError: samples of different shapes would share a batch.
    """
    sizes = [_samples_in(batch) for batch in batches]
    if any(isinstance(batch, WholeBatch) for batch in batches):
        for i, batch in enumerate(batches):
            if sum(sizes[:i]) < samples:
                yield tuple(batch)
        return
    for new in even_slices(samples, size):
        parts, lengths, begin, end = [], [], new.start, new.stop
        for batch, length in zip(batches, sizes, strict=True):
            if begin < length and end > 0:
                first, last = max(begin, 0), min(end, length)
                parts.append(cut(batch, first, last, length))
                lengths.append(last - first)
            begin, end = begin - length, end - length
        yield parts[0] if len(parts) == 1 else _joined(parts, lengths)


def described(inputs: Any) -> str:
    """Describe inputs by the shapes of their tensors, for errors."""
    if isinstance(inputs, Tensor):
        return str(list(inputs.shape))
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key}: {described(value)}" for key, value in inputs.items())
    if isinstance(inputs, tuple | list):
        return " and ".join(described(item) for item in inputs)
    return repr(inputs) if isinstance(inputs, int | float | str | None) else f"a {type(inputs).__name__}"


def _joined(parts: list, lengths: list[int]) -> Any:
    """Join parts of batches, of which `lengths` are the numbers of samples."""
    one = parts[0]
    if isinstance(one, Tensor) and one.ndim:
        if [len(part) for part in parts] != lengths:
            if not all(_equal(one, part) for part in parts[1:]):
                raise DataError(
                    f"a tensor of the shape {list(one.shape)} is shared by the samples of a batch, but differs between "
                    "batches, which can't be joined: give it one row for each sample, or use the batch size that your "
                    "batches have"
                )
            return one
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise DataError(
                f"samples of the shapes {' and '.join(str(list(shape)) for shape in shapes)} can't share a batch: pad "
                "them to one shape, or use the batch size that your batches have"
            )
        return torch.cat(parts)
    if isinstance(one, Mapping):
        return {key: _joined([part[key] for part in parts], lengths) for key in one}
    if holds_samples(one) and [len(part) for part in parts] == lengths:
        return [item for part in parts for item in part]
    if isinstance(one, tuple | list):
        return like(one, [_joined(list(items), lengths) for items in zip(*parts, strict=True)])
    return one


def _samples_in(batch: tuple) -> int:
    """Count the samples of a pair: the target's rows, if some of the inputs have as many, or else those of the inputs.

    Position ids [tokens] that come first would otherwise be counted.
    """
    inputs, target = batch
    rows, lengths = lengths_of(target)[:1], lengths_of(inputs)
    return rows[0] if rows and (rows[0] in lengths or not lengths) else size_of(inputs)


def _fits(batch: tuple) -> bool:
    """Whether all tensors of a pair have one row for each sample, or a single row for all."""
    inputs, target = batch
    return bool(lengths_of(inputs)) and {*lengths_of(inputs), *lengths_of(target)} <= {1, _samples_in(batch)}


def _shared(batch: tuple) -> list[Tensor]:
    """Return the tensors that do not have one row for each sample."""
    samples = _samples_in(batch)

    def collect(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value] if value.ndim and len(value) != samples else []
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        return [tensor for item in items for tensor in collect(item)]

    return collect(batch[0])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return one.shape == other.shape and torch.equal(one, other.to(one.device))
