"""Differentiable sums over all processes; see `sglp.distributed.processes`."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from sglp.distributed import processes


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum a tensor over all processes; gradients flow back through the sum, and are summed over all processes too."""
    return _AllReduceSum.apply(value) if processes.count() > 1 else value


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)
