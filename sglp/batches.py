"""Running a network on a batch: its inputs, alone or with their targets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sglp.errors import ScoringError


def inputs_of(batch):
    """The inputs of a batch: of a pair (inputs, target) the first, else the batch itself (a tensor or a dict)."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def at_least_one(batches: Iterable) -> Iterator:
    """The same batches.

    Raises:
        ScoringError: there is none.
    """
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ScoringError("there is no batch to score layers with")


@dataclass(eq=False)
class Passes:
    """How often networks ran on a batch, and how often gradients were taken through them."""

    forward: int = 0
    backward: int = 0


_counting: list[Passes] = []


@contextmanager
def counted() -> Iterator[Passes]:
    """Count the passes of `call` and `backward` for a while: what a method costs, on any machine."""
    passes = Passes()
    _counting.append(passes)
    try:
        yield passes
    finally:
        _counting.remove(passes)


def call(network: nn.Module, inputs):
    """Run a network on a tensor, or on a dict of keyword arguments."""
    for passes in _counting:
        passes.forward += 1
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def backward(loss: Tensor, again: bool = False) -> None:
    """Take the gradients of a loss; its graph stays where parts of it are to be gone through again."""
    for passes in _counting:
        passes.backward += 1
    loss.backward(retain_graph=again)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module is in the mode that it was in."""
    training = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def logits_of(output) -> Tensor:
    """The logits in what a network returns: a tensor, or an output object of transformers."""
    return output if isinstance(output, Tensor) else output.logits


def one_sample(inputs):
    """The first sample of the inputs of a batch, as a batch."""
    if isinstance(inputs, Mapping):
        return {key: value[:1] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return inputs[:1]


def run_watched(network: nn.Module, inputs, handles: Sequence) -> None:
    """Run a network on one sample of the inputs of a batch; then the handles' hooks, which watched it, are removed."""
    try:
        with eval_mode(network), torch.no_grad():
            call(network, to_device(one_sample(inputs), device_of(network)))
    finally:
        for handle in handles:
            handle.remove()


def size_of(inputs) -> int:
    """The number of samples in the inputs of a batch."""
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return len(first)


def to_device(batch, device: torch.device):
    """The same batch with all its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are (the CPU for one without any), or where accelerate runs it."""
    place = getattr(getattr(network, "_hf_hook", None), "execution_device", None)
    places = (p.device for p in network.parameters() if not p.is_meta)
    return torch.device(next(places, "cpu") if place is None else place)
