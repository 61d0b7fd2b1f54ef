"""Forward passes on several batches that advance together from one pause to the next.

A network's layers can't be run one by one without knowing its code. Instead, every batch has a forward pass in a thread
of its own, and a hook pauses it where a layer begins or ends. Only one thread runs at a time, so the order of all
computations is fixed. Each pass holds the activations of one point of the network, whatever its depth.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from torch import nn

from sglp.errors import ScoringError
from sglp.observing import observe_after
from sglp.reconstruction.passes import Pass, current_pass
from sglp.running import eval_mode


def advance_to(passes: Sequence[Pass], place: str) -> list[Any]:
    """Let passes run to a pause, one after another from pause to pause, and return what each passes there.

    Raises:
        ScoringError: a pass ends before.
    """
    while True:
        values = [one.advance() for one in passes]
        if any(one.done for one in passes):
            raise ScoringError(f"not every batch gets to {place}, so that layers can't be reconstructed")
        if all(one.place == place for one in passes):
            return values


def pause_before(module: nn.Module, place: str) -> Callable[[], None]:
    """Pause passes where a module begins, before its other hooks, with its (args, kwargs); return how to undo it."""

    def hook(_, args, kwargs) -> None:
        running = current_pass()
        if running is not None:
            running.pause(place, (args, kwargs))

    return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove


def pause_after(network: nn.Module, layer: str, place: str) -> Callable[[], None]:
    """Pause passes where a layer has ended, with what `observe_after` sees; return how to undo it."""

    def pause(value: Any) -> None:
        running = current_pass()
        if running is not None:
            running.pause(place, value)

    handles = observe_after(network, layer, pause)

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def run_in_one_thread(module: nn.Module) -> Callable[[], None]:
    """Let passes run a module in the thread that advances them, and return how to undo it.

    Kernels of the CPU keep buffers for each thread that has run them, as large as the weights.
    """
    forward = module.forward
    was_set = "forward" in vars(module)

    @wraps(forward)
    def delegated(*args, **kwargs):
        running = current_pass()
        return forward(*args, **kwargs) if running is None else running.delegate(partial(forward, *args, **kwargs))

    def undo() -> None:
        if was_set:
            module.forward = forward
        else:
            del module.forward

    module.forward = delegated
    return undo


@contextmanager
def in_lockstep(network: nn.Module, batches: Sequence[Any]) -> Iterator[list[Pass]]:
    """Start one pass for every batch, in eval mode; at the end of the context all passes are stopped."""
    passes = [Pass(network, inputs, len(batches)) for inputs in batches]
    with eval_mode(network):
        for one in passes:
            one.start()
        try:
            yield passes
        finally:
            for one in passes:
                one.stop()
