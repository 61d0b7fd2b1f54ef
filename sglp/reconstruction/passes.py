"""A forward pass in a thread of its own, which pauses inside hooks."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import nn

from sglp.distributed.whole_batch import whole_batch
from sglp.running import call

_current = threading.local()


class _Stopped(BaseException):
    """Unwinds a forward pass that is no longer needed."""


class Pass(threading.Thread):
    """The forward pass of one batch.

    Attributes:
        count: number of passes that advance together.
        place: name of the last pause.
        value: what the last pause has passed.
        done: whether the pass has ended.
    """

    def __init__(self, network: nn.Module, inputs: Any, count: int):
        super().__init__(daemon=True)
        self.network = network
        self.inputs = inputs
        self.count = count
        self.place = ""
        self.value: Any = None
        self.done = False
        self._error: BaseException | None = None
        self._stopped = False
        self._finished: list[Future] = []
        self._work: Callable[[], Any] | None = None
        self._resume = threading.Semaphore(0)
        self._paused = threading.Semaphore(0)

    def run(self) -> None:
        """Run the forward pass; `advance` lets it go on."""
        self._resume.acquire()
        _current.running = self
        try:
            if not self._stopped:
                with torch.no_grad(), whole_batch():  # modes of torch belong to a thread
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

    def delegate(self, work: Callable[[], Any]) -> Any:
        """Let the thread that called `advance` do some work, and return the result."""
        self._work = work
        self._paused.release()
        self._resume.acquire()
        if self._stopped:
            raise _Stopped
        return self._finished.pop().result()

    def advance(self) -> Any:
        """Run to the next pause, and return what it passes; None at the end of the pass."""
        self.value = None
        self._resume.release()
        self._paused.acquire()
        while self._work is not None:
            self._do(self._work)
            self._resume.release()
            self._paused.acquire()
        if self._error is not None:
            raise self._error
        return self.value

    def _do(self, work: Callable[[], Any]) -> None:
        self._work = None
        finished: Future = Future()
        try:
            with torch.no_grad(), whole_batch():
                finished.set_result(work())
        except Exception as error:  # raised again by `delegate`, inside the network
            finished.set_exception(error)
        self._finished.append(finished)

    def stop(self) -> None:
        """End the pass where it is."""
        if not self.done:
            self._stopped = True
            self._resume.release()
        self.join()


def current_pass() -> Pass | None:
    """Return the pass whose thread calls this, or None outside passes."""
    return getattr(_current, "running", None)
