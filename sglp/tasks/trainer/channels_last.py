"""Train convolutions in the memory format in which they are fast: channels_last."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sglp.running import call, logits_of


@contextmanager
def channels_last(network: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Keep the weights of a convolutional network in channels_last inside a context; its state dict is unaffected.

    A network that can't be trained in this format, for example because it flattens with `view`, is not changed.

    Args:
        network: the network; its parameters stay the same objects.
        inputs: a batch of at least two samples, for a trial.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()) or not _can(network, inputs):
        yield
        return
    network.to(memory_format=torch.channels_last)
    hook = network.register_state_dict_post_hook(_contiguous_state)
    try:
        yield
    finally:
        hook.remove()
        network.to(memory_format=torch.contiguous_format)


def _can(network: nn.Module, inputs: Tensor) -> bool:
    """Try a training step on a copy."""
    try:
        trial = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
        with torch.random.fork_rng(), torch.enable_grad():
            logits_of(call(trial, inputs)).sum().backward()
    except Exception:  # an error with another cause occurs again in training
        return False
    return True


def _contiguous_state(network: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """Convert the tensors of a state dict to the contiguous format, which safetensors needs."""
    for name, value in state.items():
        if torch.is_tensor(value):
            state[name] = value.contiguous()
