"""How networks are judged, by task: kept apart from it, so that what is trained does not depend on what only judges.

For every task there is a module of its name here, with these functions:

    check_workload(content)                       an error for what the workload's schema can't tell
    evaluate(network, data, settings, processor, tasks)    metrics, and examples to show
    macs(network, data)                           names and figures of the cost of a forward pass
    work(network, data, settings, size)           what is timed, the forward pass first (`Work`)
"""

from importlib import import_module
from types import ModuleType


def find_evaluation(task: str) -> ModuleType:
    """How networks for a task are judged."""
    return import_module(f"sglp.tasks.evaluation.{task}")
