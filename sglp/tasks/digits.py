"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, embedded in the library, nothing to download."""

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_SHARE = 0.2


class Digits:
    """A split of the digits as a data set of (image, label), 80 % for training and 20 % for the test.

    Args:
        train: the training split, or else the test split. The split is the same every time, with the same share of
            each digit on both sides.
    """

    def __init__(self, train: bool):
        digits = load_digits()
        images = (digits.images * 15).astype("uint8")  # 0..16 to 0..240
        split = train_test_split(images, digits.target, test_size=TEST_SHARE, stratify=digits.target, random_state=0)
        self.images, self.targets = (split[0], split[2]) if train else (split[1], split[3])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])
