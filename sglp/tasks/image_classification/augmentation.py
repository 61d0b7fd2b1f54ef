"""Training images whose augmentation depends only on seed, epoch and index, so that a killed run can resume."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sglp.tasks.image_classification.images import Images


class TrainingImages(Dataset):
    """Samples indexed by (epoch, position). Their augmentation does not depend on what ran before.

    Args:
        images: the training split.
        indices: indices of the samples to use.
        augment: transforms for training, or None for the transforms of evaluation.
        seed: seed of the augmentation.
    """

    def __init__(self, images: Images, indices: np.ndarray, augment: list[dict] | None, seed: int):
        self.images, self.indices, self.seed = images, indices, seed
        self.by_epoch, self.random = augment is not None, bool(augment)
        self.steps = images.steps if augment is None else images.steps_after(augment)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key) -> tuple[Tensor, int]:
        epoch, position = key if self.by_epoch else (0, key)
        index = int(self.indices[position])
        label = int(self.images.labels[index])
        if not self.random:
            return self.images.prepared(index, self.steps), label
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed is slow: without a GPU it records a traceback of every call for later.
            torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
            return self.images.prepared(index, self.steps), label
