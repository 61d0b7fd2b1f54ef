"""How the networks of a task are trained."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor, nn


class TaskTraining(Protocol):
    """Functions of the module `sglp.tasks.TASK.training`."""

    def training_samples(self, data: Any, indices: Any, recipe: Any, seed: int) -> Any:
        """Return a data set for training, indexed by (epoch, position); without a recipe it is indexed by position."""

    def collate(self, samples: list) -> tuple[Any, Tensor]:
        """Make a batch of samples."""

    def trainer_arguments(self, recipe: Any) -> dict:
        """Return the Trainer's arguments that only this task needs."""

    def adapt(self, network: nn.Module, recipe: Any, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
        """Return the network to train, and a function that returns the original network with what was learnt."""


def find_training(task: str) -> TaskTraining:
    """Import how the networks of a task are trained."""
    return cast(TaskTraining, import_module(f"sglp.tasks.{task}.training"))
