"""Forward passes on several batches that advance together from one pause to the next.

A network's layers can't be run one by one without knowing its code. Instead, every batch has a forward pass in a thread
of its own, and a hook pauses it where a layer begins or ends. Only one thread runs at a time, so the order of all
computations is fixed. Each pass holds the activations of one point of the network, whatever its depth.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sglp.errors import ScoringError
from sglp.running import call, eval_mode

_current = threading.local()


class _Stopped(BaseException):
    """Unwinds a forward pass that is no longer needed."""


class Pass(threading.Thread):
    """The forward pass of one batch.

    Attributes:
        place: name of the last pause.
        value: what the last pause has passed.
        done: whether the pass has ended.
    """

    def __init__(self, network: nn.Module, inputs: Any):
        super().__init__(daemon=True)
        self.network = network
        self.inputs = inputs
        self.place = ""
        self.value: Any = None
        self.done = False
        self._error: BaseException | None = None
        self._stopped = False
        self._resume = threading.Semaphore(0)
        self._paused = threading.Semaphore(0)

    def run(self) -> None:
        """Run the forward pass; `advance` lets it go on."""
        self._resume.acquire()
        _current.running = self
        try:
            if not self._stopped:
                with torch.no_grad():  # the gradient mode belongs to a thread
                    call(self.network, self.inputs)
        except _Stopped:
            pass
        except BaseException as error:  # raised again by `advance`, in the thread that asked
            self._error = error
        finally:
            self.done = True
            self.value = None
            self._paused.release()

    def pause(self, place: str, value: Any) -> None:
        """Wait inside a hook until `advance` is called again."""
        self.place, self.value = place, value
        self._paused.release()
        self._resume.acquire()
        if self._stopped:
            raise _Stopped

    def advance(self) -> Any:
        """Run to the next pause, and return what it passes; None at the end of the pass."""
        self.value = None
        self._resume.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error
        return self.value

    def stop(self) -> None:
        """End the pass where it is."""
        if not self.done:
            self._stopped = True
            self._resume.release()
        self.join()


def advance_to(passes: Sequence[Pass], place: str) -> list[Any]:
    """Let passes run to a pause, one after another from pause to pause, and return what each passes there.

    Raises:
        ScoringError: a pass ends before.
    """
    while True:
        values = [one.advance() for one in passes]
        if any(one.done for one in passes):
            raise ScoringError(f"{place} does not run for every batch, so that it can't be reconstructed")
        if all(one.place == place for one in passes):
            return values


def pause_before(module: nn.Module, place: str) -> Callable[[], None]:
    """Pause passes where a module begins, with its (args, kwargs); return how to remove the hook."""

    def hook(_, args, kwargs) -> None:
        running = getattr(_current, "running", None)
        if running is not None:
            running.pause(place, (args, kwargs))

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def pause_after(module: nn.Module, place: str) -> Callable[[], None]:
    """Pause passes where a module has ended, with its output; return how to remove the hook."""

    def hook(_, args, output) -> None:
        running = getattr(_current, "running", None)
        if running is not None:
            running.pause(place, output)

    return module.register_forward_hook(hook).remove


@contextmanager
def in_lockstep(network: nn.Module, batches: Sequence[Any]) -> Iterator[list[Pass]]:
    """Start one pass for every batch, in eval mode; at the end of the context all passes are stopped."""
    passes = [Pass(network, inputs) for inputs in batches]
    with eval_mode(network):
        for one in passes:
            one.start()
        try:
            yield passes
        finally:
            for one in passes:
                one.stop()
