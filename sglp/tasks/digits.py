"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, embedded in the library, nothing to download.

Its file is read without the library, whose import takes longer than most of what is done with the digits.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

FILE = "datasets/data/digits.csv.gz"  # a line an image: its 64 pixels, row by row, of 0 to 16, and its class
EVERY = 5


class Digits:
    """A split of the digits as a data set of (image, label): every fifth image of each digit is one of the test.

    Args:
        train: the training split (1,433 images), or else the test split (364).
    """

    def __init__(self, train: bool):
        table = np.loadtxt(Path(find_spec("sklearn").origin).parent / FILE, delimiter=",", dtype=np.uint8)
        labels = table[:, -1].astype(np.int64)
        among_its_kind = np.empty(len(labels), dtype=int)
        for label in np.unique(labels):
            among_its_kind[labels == label] = np.arange((labels == label).sum())
        chosen = (among_its_kind % EVERY == 0) != train
        self.images, self.targets = 15 * table[chosen, :-1].reshape(-1, 8, 8), labels[chosen]  # 0..16 to 0..240

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])
