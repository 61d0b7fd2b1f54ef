"""Statistics of batch norms over all values that they are passed in many batches.

The moments of the batches are merged by the formula of Chan, Golub and LeVeque (1979), so that every value has the same
weight, whatever the batches, and the variance includes the one between batches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sglp.distributed import processes
from sglp.distributed.whole_batch import moments


class Pool:
    """The mean and the variance of each channel over all values so far.

    Attributes:
        count: number of values per channel.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())  # sum of squared deviations from the mean

    def add(self, values: Tensor) -> None:
        """Add the values [samples, channels, ...] of a batch."""
        rows, mean, squares = (part.double() for part in moments(values))
        count = float(rows)
        if not self.count:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        step = mean - self._mean
        self._mean = self._mean + step * (count / total)
        self._squares = self._squares + squares + step.square() * (self.count * count / total)
        self.count = total

    def mean(self) -> Tensor:
        """Return the mean [channels], float64."""
        return self._mean

    def variance(self, correction: int = 0) -> Tensor:
        """Return the variance [channels], float64; unbiased with correction 1."""
        return self._squares / max(self.count - correction, 1)


class PooledStatistics(TorchFunctionMode):
    """Lets batch norms in train mode use, and store, the statistics of all batches that have run inside this context.

    A batch is thus normalised by itself and the batches before it: it may be small, even a single value per channel.
    """

    def __init__(self, norms: Sequence[_BatchNorm]):
        super().__init__()
        self.pools = {norm: Pool() for norm in norms}
        self._norm_of = {id(norm.running_mean): norm for norm in norms}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.batch_norm or not kwargs.get("training"):
            return function(*args, **kwargs)
        inputs, running_mean = args[:2]
        norm = self._norm_of.get(id(running_mean))
        if norm is None:
            return function(*args, **kwargs)
        pool = self.pools[norm]
        with torch.no_grad():
            pool.add(inputs.to(torch.promote_types(inputs.dtype, torch.float32)))
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(pool.mean())
            norm.running_var.copy_(pool.variance(correction=1))
            variance = pool.variance().to(norm.running_var)
        unchanged = {key: value for key, value in kwargs.items() if key not in ("training", "momentum")}
        return function(inputs, norm.running_mean.clone(), variance, **unchanged, training=False)


class RunningForSingleValues(TorchFunctionMode):
    """Lets batch norms in train mode use their running statistics for a batch of one value per channel.

    Such a batch has no variance. With several processes it is a part of a batch that has one.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is F.batch_norm and kwargs.get("training") and processes.count() == 1:
            inputs, running_mean = args[:2]
            if running_mean is not None and inputs.numel() == inputs.shape[1]:
                kwargs["training"] = False
        return function(*args, **kwargs)
