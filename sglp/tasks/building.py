"""How the dense network of a task is built."""

from importlib import import_module
from typing import Any, Protocol, cast

from torch import nn

from sglp.tasks.schemas.workload import Architecture, Weights


class Building(Protocol):
    """Functions of the module `sglp.tasks.TASK.building`."""

    def build(self, architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
        """Build the dense network, with all weights that are not trained by the pipeline.

        Args:
            architecture: factory and arguments.
            weights: where the weights come from.
            path: the user's weights, a file or folder, or None.
            seed: seed of random weights.
        """

    def first_processor(self, architecture: Architecture, weights: Weights, path: str | None, prepare: dict) -> Any:
        """Load the processor (a tokenizer) of the dense network before it is saved; None if the task needs none."""


def find_building(task: str) -> Building:
    """Import how the dense network of a task is built."""
    return cast(Building, import_module(f"sglp.tasks.{task}.building"))
