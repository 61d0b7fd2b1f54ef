"""Samplers whose order depends only on seed and epoch, the same in all processes."""

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from sglp.distributed import processes


class EpochSampler(Sampler):
    """Pairs (epoch, position) in an order that depends only on seed and epoch, so that a killed run can resume."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return ((self.epoch, int(position)) for position in order)


class Parts(BatchSampler):
    """The part of every batch that belongs to this process; all parts form the batch of a single process."""

    def __iter__(self):
        return (batch[processes.part(len(batch))] for batch in super().__iter__())
