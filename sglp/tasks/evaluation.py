"""How the networks of a task are evaluated. It is separate from the data, so that training does not depend on it."""

from importlib import import_module
from typing import Any, Protocol, cast

from torch import nn


class Evaluation(Protocol):
    """Functions of the module `sglp.tasks.TASK.evaluation`."""

    def check_workload(self, content: dict) -> None:
        """Raise an error for mistakes that the schema of the workload can't detect."""

    def evaluate(
        self, network: nn.Module, data: Any, settings: dict, processor: Any = None, tasks: str | None = None
    ) -> tuple[dict, list]:
        """Return metrics on a split, and examples for the report."""

    def macs(self, network: nn.Module, data: Any) -> dict[str, int]:
        """Return the cost of a forward pass: names and figures."""


def find_evaluation(task: str) -> Evaluation:
    """Import how the networks of a task are evaluated."""
    return cast(Evaluation, import_module(f"sglp.tasks.{task}.evaluation"))
