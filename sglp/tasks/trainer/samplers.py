"""Draws that depend on a seed alone, or on a seed and an epoch, whoever of several processes draws."""

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from sglp.distributed import processes


class EpochSampler(Sampler):
    """Pairs (epoch, position) in an order that depends on seed and epoch alone, so that a killed run can go on."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """What the Trainer calls before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return ((self.epoch, int(position)) for position in order)


class Parts(BatchSampler):
    """This process's part of every batch; all parts together are the batch that one process would have."""

    def __iter__(self):
        return (batch[processes.part(len(batch))] for batch in super().__iter__())
