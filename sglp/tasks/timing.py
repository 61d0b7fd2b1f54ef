"""The work that the networks of a task are timed on."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

from torch import nn


class BenchmarkTask(NamedTuple):
    """A piece of work that a network is timed on.

    Attributes:
        name: such as "forward".
        run: does the work once.
        units: how many samples or tokens the work has.
        unit: "samples" or "tokens".
        inputs: inputs of the network, if one call is the whole work.
    """

    name: str
    run: Callable[[], object]
    units: int
    unit: str
    inputs: object = None


class Timing(Protocol):
    """Functions of the module `sglp.tasks.TASK.timing`."""

    def work(self, network: nn.Module, data: Any, settings: dict, size: int) -> list[BenchmarkTask]:
        """Return the work to time at a batch size, the forward pass first."""


def find_timing(task: str) -> Timing:
    """Import the work that the networks of a task are timed on."""
    return cast(Timing, import_module(f"sglp.tasks.{task}.timing"))
