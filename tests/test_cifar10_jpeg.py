"""Packed images: `datasets` reads from the files what was in the folders."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from experiments.cifar10_jpeg import pack
from experiments.errors import RunError

CLASSES = ("airplane", "automobile", "bird")


def test_the_files_hold_every_image_with_its_class(tmp_path):
    packed: dict[str, dict[bytes, int]] = {}
    for index in range(24):
        split, name = ("train", "test")[index % 2], CLASSES[index % 3]
        file = tmp_path / "folder" / split / name / f"{index:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 10 * index, dtype=np.uint8)).save(file)
        packed.setdefault(split, {})[file.read_bytes()] = CLASSES.index(name)
    pack(tmp_path / "folder", tmp_path / "packed")
    for split, images in packed.items():
        file = str(tmp_path / "packed" / f"{split}.parquet")
        rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
        raw = rows.cast_column("image", datasets.Image(decode=False))
        assert {row["image"]["bytes"]: row["label"] for row in raw} == images
        assert [row["label"] for row in raw] != sorted(images.values()), "any part has all classes"
        first = rows.cast_column("image", datasets.Image())[0]["image"]
        assert first.tobytes() == Image.open(io.BytesIO(raw[0]["image"]["bytes"])).tobytes()


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no JPEG files such as train/airplane/0000\.jpg"):
        pack(tmp_path, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
