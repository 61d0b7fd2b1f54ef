"""Sums over all processes that share the work; see `sglp.distributed.processes`."""

import torch
import torch.distributed
from torch import Tensor

from sglp.distributed import processes


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over all processes, which gradients flow through: of the sum of what all of them make of it."""
    return _Total.apply(value) if processes.count() > 1 else value


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        whole = value.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)
