"""Batch norms outside the layers to refit: their statistics fit no longer once layers before them have new weights."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.distributed.whole_batch import whole_batch
from sglp.reconstruction.goals import Goal
from sglp.running import call, hooked_eval, run_hooked
from sglp.surgery.batchnorm import averaging, norms_of


def norms_after(goals: Sequence[Goal], pruned: nn.Module, inputs: Any) -> list[_BatchNorm]:
    """Find the batch norms outside the layers to refit that run after the first of them.

    Args:
        goals: the layers to refit.
        pruned: the network that has them.
        inputs: a batch; its first sample is run if the network has batch norms outside the layers.
    """
    inside = {norm for goal in goals for module in goal.modules for norm in norms_of(module)}
    outside = [norm for norm in norms_of(pruned) if norm not in inside]
    if not outside:
        return []
    order: list[nn.Module] = []
    watched = [goals[0].modules[0], *outside]
    handles = [module.register_forward_pre_hook(lambda module, _: order.append(module)) for module in watched]
    run_hooked(pruned, inputs, handles)
    after = set(order[order.index(watched[0]) :])
    return [norm for norm in outside if norm in after]


def average_statistics(pruned: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Any]) -> None:
    """Replace the running statistics of batch norms by those of all samples, in place.

    Args:
        pruned: the network.
        norms: its batch norms to average.
        batches: the inputs.
    """
    with hooked_eval(pruned, ()), whole_batch(), averaging(norms):
        for one in batches:
            call(pruned, one)
