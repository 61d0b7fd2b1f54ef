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


def slices(samples: int, size: int) -> list[slice]:
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
    """Eval mode for a while; afterwards every module is in the mode that it was in.

    Without attention's fast path, which hands layers nested tensors, or nothing at all to modules inside of them.
    """
    training = {module: module.training for module in network.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        network.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():  # the outermost first
            if module.training != mode:
                module.train(mode)  # which may do more than set it (LoRA takes out again what it has merged)
        for module, mode in training.items():
            module.training = mode


def logits_of(output) -> Tensor:
    """The logits in what a network returns: a tensor, or an output object of transformers."""
    return output if isinstance(output, Tensor) else output.logits


def one_sample(inputs):
    """The first sample of the inputs of a batch, as a batch."""
    if isinstance(inputs, Mapping):
        return {key: v[:1] if isinstance(v, Tensor) and v.ndim else v for key, v in inputs.items()}
    return inputs[:1]


@contextmanager
def watched(network: nn.Module, handles: Sequence) -> Iterator[None]:
    """Eval mode without gradients for a while; then the handles' hooks, which watched the network, are removed."""
    try:
        with eval_mode(network), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def run_watched(network: nn.Module, inputs, handles: Sequence) -> None:
    """Run a network on one sample of the inputs of a batch, `watched` by hooks."""
    with watched(network, handles):
        call(network, to_device(one_sample(inputs), device_of(network)))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random states of the CPU, and of a GPU if the device is one, that begin with a seed; then they are as before."""
    # Other GPUs are left alone: to look at them all takes time, which torch warns of.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for place in devices:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        yield


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


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are (the CPU for one without any), or where accelerate runs it."""
    place = getattr(getattr(network, "_hf_hook", None), "execution_device", None)
    places = (p.device for p in network.parameters() if not p.is_meta)
    return torch.device(next(places, "cpu") if place is None else place)
