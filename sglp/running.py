"""Run a network: forward and backward passes, eval mode, hooks, seeds, devices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.batches import first_sample, to_device


@dataclass(eq=False)
class Passes:
    """How often networks ran on a batch, and how often gradients were taken through them."""

    forward: int = 0
    backward: int = 0


_counting: list[Passes] = []


@contextmanager
def count_passes() -> Iterator[Passes]:
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
        call(network, to_device(first_sample(inputs), device_of(network)))


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


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are (the CPU for one without any), or where accelerate runs it."""
    place = getattr(getattr(network, "_hf_hook", None), "execution_device", None)
    places = (p.device for p in network.parameters() if not p.is_meta)
    return torch.device(next(places, "cpu") if place is None else place)


def first_tensor(value) -> Tensor:
    """The first tensor of what a module was given or returned."""
    value = dict(value) if isinstance(value, Mapping) else value
    return next(leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def main_input(args: tuple, kwargs: dict):
    """What a module hands on if it does nothing: its first argument, or the first that is a tensor."""
    if args and isinstance(args[0], tuple | list):
        return args[0]
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
