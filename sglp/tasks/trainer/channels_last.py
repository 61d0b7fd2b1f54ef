"""Trains convolutions in the order of memory in which they are fast: a pixel's channels side by side."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sglp.running import call, logits_of


@contextmanager
def channels_last(network: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Inside, a network of convolutions has its weights in channels_last and computes in it; its state looks as ever.

    A network that can't be trained so stays as it is, such as one that flattens by `view`.

    Args:
        network: its parameters stay the same objects.
        inputs: a batch of two or more, for the trial.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()) or not _can(network, inputs):
        yield
        return
    network.to(memory_format=torch.channels_last)
    hook = network.register_state_dict_post_hook(_as_ever)
    try:
        yield
    finally:
        hook.remove()
        network.to(memory_format=torch.contiguous_format)


def _can(network: nn.Module, inputs: Tensor) -> bool:
    """Whether a copy goes through a step of training."""
    try:
        twin = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
        with torch.random.fork_rng(), torch.enable_grad():
            logits_of(call(twin, inputs)).sum().backward()
    except Exception:  # whatever it is, training says it, if it is not the order of memory
        return False
    return True


def _as_ever(network: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """The state's tensors in the usual order: safetensors takes no other."""
    for name, value in state.items():
        if torch.is_tensor(value):
            state[name] = value.contiguous()
