"""Batch norm over the whole batch when each of several processes has a part of it.

torch's SyncBatchNorm needs a GPU and replaces modules. Here the function that all modules call is intercepted, so that
modules of other libraries work too.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum

Moments = tuple[Tensor, Tensor, Tensor]  # number of values per channel; mean and sum of squared deviations [channels]


def whole_batch(counts: bool = True) -> AbstractContextManager:
    """Make batch norm use the mean and variance over the parts of all processes, inside a context.

    Args:
        counts: whether this process has samples of the batch; if not, its samples are placeholders.
    """
    return _WholeBatch(counts) if processes.count() > 1 else nullcontext()


def moments(values: Tensor) -> Moments:
    """Return the moments of each channel of values [samples, channels, ...]: of all processes inside `whole_batch`."""
    if has_torch_function_unary(values):  # as in the functions of torch: a mode is active
        return handle_torch_function(moments, (values,), values)
    dims = [dim for dim in range(values.ndim) if dim != 1]
    variance, mean = torch.var_mean(values, dims, correction=0)
    rows = values.new_tensor(values.numel() / values.shape[1])
    return rows, mean, variance * rows


class _WholeBatch(TorchFunctionMode):
    def __init__(self, counts: bool):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is moments:
            return _moments(self.counts, *args)
        if function is F.batch_norm and kwargs["training"]:
            return _batch_norm(
                self.counts, *args, **{key: kwargs[key] for key in ("weight", "bias", "momentum", "eps")}
            )
        return function(*args, **kwargs)


def _moments(counts: bool, values: Tensor) -> Moments:
    dims = [dim for dim in range(values.ndim) if dim != 1]
    rows = values.new_tensor([counts * values.numel() / values.shape[1]])
    sums = all_reduce_sum(torch.cat([counts * values.sum(dims), rows]))
    mean = sums[:-1] / sums[-1]
    centred = values - mean.view([1, -1] + [1] * (values.ndim - 2))
    return sums[-1].detach(), mean, all_reduce_sum(counts * centred.square().sum(dims))


def _batch_norm(
    counts: bool,
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Apply Ioffe & Szegedy 2015, algorithm 1; running statistics use the unbiased variance, as in torch."""
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    rows, mean, squares = _moments(counts, values)
    variance = squares / rows
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * rows / (rows - 1)).to(running_var.dtype), momentum)
    outputs = (values - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        outputs = outputs * weight.view(shape)
    if bias is not None:
        outputs = outputs + bias.view(shape)
    return outputs.to(inputs.dtype)
