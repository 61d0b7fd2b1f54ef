"""The data side of a task: splits, examples, calibration batches."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sglp.distributed.processes import ALL
from sglp.tasks.schemas.workload import Source


class TaskData(Protocol):
    """Functions of the module `sglp.tasks.TASK.data`.

    A batch is a pair (inputs, target). Inputs are a tensor or a dict of arguments; the target is the class of every row
    of the network's logits, -100 where a row has none.
    """

    def processor(self, folder: Any, architecture: dict) -> Any:
        """Load the processor that was saved with a network (a tokenizer); None if the task has none."""

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """Return the precision that networks compute in on a device, or None for the precision they are stored in."""

    def open_split(
        self, source: Source, arguments: dict, prepare: dict, path: str | None, sha256: str | None, processor: Any
    ) -> Any:
        """Open a split of the data; the split has a length and a name."""

    def example(self, data: Any) -> Any:
        """Return the inputs of one sample."""

    def calibration_batches(
        self, data: Any, samples: int, batch_size: int, seed: int, part: slice = ALL
    ) -> Iterator[tuple[Any, Tensor]]:
        """Yield batches of samples drawn without replacement: all batches, or those of one part."""

    def check_fit(self, network: nn.Module, data: Any) -> None:
        """Raise an error if the network can't take the data."""


def find_data(task: str) -> TaskData:
    """Import the data side of a task."""
    return cast(TaskData, import_module(f"sglp.tasks.{task}.data"))
