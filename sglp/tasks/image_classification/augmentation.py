"""Training images whose augmentation depends on seed and epoch alone, so that a killed run can go on."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sglp.tasks.image_classification.images import Images


class TrainingImages(Dataset):
    """Samples by (epoch, index): the augmentation depends on seed, epoch and index alone, not on what ran before.

    Args:
        images: the training split.
        indices: which of its samples.
        augment: transforms for training, or None for those of evaluation.
        seed: of the augmentation.
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
            # Not torch.manual_seed: without a GPU it notes every call, with a traceback, for when there is one.
            torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
            return self.images.prepared(index, self.steps), label
