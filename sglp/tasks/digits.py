"""scikit-learn's digits: 1,797 grey images of 8x8 pixels that come with the library, so nothing is downloaded."""

import numpy as np
from PIL import Image

EVERY = 5


class Digits:
    """A split of the digits as a data set of (image, label); every fifth image of each digit is in the test split.

    Args:
        train: the training split (1,433 images) if true, else the test split (364 images).
    """

    def __init__(self, train: bool):
        from sklearn.datasets import load_digits  # takes a second to import, which other data need not wait for

        values, labels = load_digits(return_X_y=True)  # values of 0 to 16
        labels = labels.astype(np.int64)
        index_in_class = np.empty(len(labels), dtype=int)
        for label in np.unique(labels):
            index_in_class[labels == label] = np.arange((labels == label).sum())
        chosen = (index_in_class % EVERY == 0) != train
        self.images = 15 * values[chosen].astype(np.uint8).reshape(-1, 8, 8)  # 0 to 240
        self.targets = labels[chosen]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])
