"""Running a network: forward and backward passes, eval mode, hooks, seeds, devices."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from sglp.arguments import as_arguments
from sglp.batches import inputs_of, to_device
from sglp.cutting import Inputs, first_sample
from sglp.errors import SGLPError


@dataclass(eq=False)
class Passes:
    """Numbers of forward and backward passes, each over one batch."""

    forward: int = 0
    backward: int = 0


_counting: list[Passes] = []


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the passes of `call` and `backward` inside a context: a machine-independent cost of a method."""
    passes = Passes()
    _counting.append(passes)
    try:
        yield passes
    finally:
        _counting.remove(passes)


def call(network: nn.Module, inputs: Any) -> Any:
    """Run a network on a tensor, a dict of keyword arguments, or a tuple of arguments; see `as_arguments`."""
    for passes in _counting:
        passes.forward += 1
    inputs = as_arguments(network, inputs)
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) and not hasattr(inputs, "_fields") else network(inputs)


def inputs_for(network: nn.Module, batch: Any) -> Any:
    """Return the inputs of a batch as a network takes them, on its device; see `as_arguments`."""
    return to_device(as_arguments(network, inputs_of(batch)), device_of(network))


def backward(loss: Tensor, again: bool = False) -> None:
    """Compute the gradients of a loss; `again` keeps the graph for a further backward pass."""
    for passes in _counting:
        passes.backward += 1
    loss.backward(retain_graph=again)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode inside a context, then restore the mode of every module.

    The fast path of attention is disabled: it passes nested tensors to layers, and skips the modules inside them.
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
                module.train(mode)  # can do more than set the mode: LoRA unmerges its weights
        for module, mode in training.items():
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """Return the logits in a network's output: a tensor, or a Hugging Face output object or dict that holds them."""
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, Mapping) else output.logits


def with_logits(output: Any, logits: Tensor) -> Any:
    """Return a network's output with other logits."""
    if isinstance(output, Tensor):
        return logits
    changed = copy.copy(output)
    if isinstance(changed, MutableMapping):
        changed["logits"] = logits
    else:
        changed.logits = logits
    return changed


def holds_logits(output: Any) -> bool:
    """Check whether `logits_of` finds logits in a network's output."""
    held = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    return isinstance(held, Tensor)


@contextmanager
def hooked_eval(network: nn.Module, handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Put a network in eval mode without gradients inside a context, then remove the hooks of `handles`."""
    try:
        with eval_mode(network), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def run_hooked(network: nn.Module, inputs: Inputs, handles: Sequence[RemovableHandle]) -> None:
    """Run a network on the first sample of a batch's inputs with hooks, as in `hooked_eval`."""
    with hooked_eval(network, handles):
        call(network, to_device(first_sample(as_arguments(network, inputs)), device_of(network)))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU, and the device if it is a GPU, inside a context, then restore their random states."""
    # Other GPUs are left alone: saving the states of all of them takes time, and torch warns about it.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters (the CPU if it has none), or the one that accelerate runs it on."""
    execution_device = getattr(getattr(network, "_hf_hook", None), "execution_device", None)
    devices = (p.device for p in network.parameters() if not p.is_meta)
    return torch.device(next(devices, "cpu") if execution_device is None else execution_device)


def first_tensor(value: Any) -> Tensor:
    """Return the first tensor in the arguments or the output of a module."""
    value = dict(value) if isinstance(value, Mapping) else value
    return next(leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def check_float64(device: torch.device) -> None:
    """Check that a device computes in float64, which sums over samples need.

    Raises:
        SGLPError: it does not.
    """
    if device.type == "mps":
        raise SGLPError("the network is on an Apple GPU, which has no float64: move it to the CPU first, with cpu()")


def main_input(args: tuple, kwargs: dict) -> Any:
    """Return the argument that an identity module would return: a tuple or list in first place, or the first tensor."""
    if args and isinstance(args[0], tuple | list):
        return args[0]
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
