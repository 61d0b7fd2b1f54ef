"""Training samples whose order and augmentation depend on seed and epoch alone, so that a killed run can go on."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sglp.tasks.images import Images, stack


class TrainingSamples(Dataset):
    """Samples by (epoch, index): the augmentation depends on seed, epoch and index alone, not on what ran before.

    Args:
        images: the training split.
        indices: which of its samples.
        augment: transforms for training, or None for those of evaluation.
        seed: of the augmentation.
    """

    def __init__(self, images: Images, indices: np.ndarray, augment: list[dict] | None, seed: int):
        self.images, self.indices, self.seed = images, indices, seed
        self.transform = None if augment is None else images.augmented(augment)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key) -> tuple[Tensor, int]:
        if self.transform is None:
            return self.images[int(self.indices[key])]
        epoch, position = key
        index = int(self.indices[position])
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0] >> np.uint64(1)))
            return self.images.prepared(index, self.transform), int(self.images.labels[index])


class EpochSampler(Sampler):
    """Pairs (epoch, position) in an order that depends on seed and epoch alone."""

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


def collate(pairs: list) -> dict[str, Tensor]:
    """A batch for the Trainer."""
    inputs, labels = stack(pairs)
    return {"inputs": inputs, "labels": labels}
