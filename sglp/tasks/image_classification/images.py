"""Splits of labelled images, from `datasets` or from a data-set class."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from sglp.errors import DataError, first_line
from sglp.tasks.image_classification.pixels import normalized, pixels, to_unit_float
from sglp.tasks.image_classification.transforms import make_transforms
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.sources import name_of, open_source, reading

CACHE_SIZE = 2**29  # bytes of decoded pixels to keep: a small image takes longer to read than to train on


class Images:
    """A split: images and labels, prepared as tensors one by one.

    Args:
        source: where the data come from.
        arguments: arguments of the split, for `load_dataset` (split, data_files) or for the class.
        prepare: how images become tensors.
        path: the user's file or folder, or None.
        sha256: checksum of the file; `datasets` caches its tables under it, so that two files are never confused.

    Raises:
        DataError: the data can't be read, have no samples, or have a label that is not one of the classes.
    """

    def __init__(
        self,
        source: Source,
        arguments: dict,
        prepare: ImagePreparation,
        path: str | None = None,
        sha256: str | None = None,
    ):
        self.name, self.prepare = name_of(source, path), prepare
        data = open_source(source, arguments, path, sha256, [prepare.image_column, prepare.label_column])
        with reading(self.name):
            self.items, self.labels = self._from_table(data) if source.loader == "datasets" else _from_class(data)
        if not len(self.labels):
            raise DataError(f"{self.name} has no samples")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= prepare.classes:
            raise DataError(
                f"{self.name} has the label {low if low < 0 else high}, but data.prepare.classes={prepare.classes} "
                f"allows 0 to {prepare.classes - 1}"
            )
        self.decoded: dict[int, Tensor] = {}
        self.room = CACHE_SIZE
        self.steps = self.steps_after(prepare.transforms)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.prepared(index, self.steps), int(self.labels[index])

    def steps_after(self, transforms: Sequence[dict]) -> list[Callable]:
        """Return the steps that prepare an image for the network: transforms, then normalisation."""
        return [*make_transforms(transforms), self._normalized]

    def prepared(self, index: int, steps: Sequence[Callable]) -> Tensor:
        """Apply steps to one image [channels, height, width].

        Raises:
            DataError: the image can't be decoded, or a step fails.
        """
        try:
            image = self.image(index)
            for step in steps:
                image = step(image)
            return image
        except Exception as error:  # whatever a decoder or a transform raises, the user needs one sentence
            raise DataError(f"image {index} of {self.name} can't be prepared: {first_line(error)}") from error

    def image(self, index: int) -> Tensor:
        """Return the image in 8 bits, with the channels that the network takes; cache it if there is room."""
        image = self.decoded.get(index)
        if image is None:
            image = pixels(self.items(index).convert("L" if self.prepare.channels == 1 else "RGB"))
            if image.numel() <= self.room:
                self.decoded[index] = image
                self.room -= image.numel()
        return image.clone()  # a transform may work in place

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs [samples, channels, height, width] and labels [samples]; errors as in `stack`."""
        return stack([self[i] for i in indices])

    def _normalized(self, image: Tensor) -> Tensor:
        return normalized(to_unit_float(image), self.prepare.mean, self.prepare.std)

    def _from_table(self, table):
        import datasets

        image, label = self.prepare.image_column, self.prepare.label_column
        classes = getattr(table.features[label], "num_classes", None)
        if classes is not None and classes != self.prepare.classes:
            raise DataError(f"{self.name} has {classes} classes, but data.prepare.classes={self.prepare.classes}")
        table = table.cast_column(image, datasets.Image())
        return (lambda index: table[index][image]), torch.tensor(table[label][:], dtype=torch.int64)


def _from_class(data):
    labels = getattr(data, "targets", None)
    labels = [data[i][1] for i in range(len(data))] if labels is None else labels
    return (lambda index: _as_image(data[index][0])), torch.as_tensor(labels, dtype=torch.int64)


def stack(pairs: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack pairs into inputs [samples, channels, height, width] and labels [samples].

    Raises:
        DataError: the images differ in size.
    """
    shapes = sorted({tuple(image.shape) for image, _ in pairs})
    if len(shapes) > 1:
        raise DataError(
            f"the images differ in size ({shapes[0]} and {shapes[1]}): add Resize and CenterCrop to "
            "data.prepare.transforms, and RandomResizedCrop or the like to augment"
        )
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _as_image(value) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    from torchvision.transforms.v2 import functional  # takes longer to import than torch

    return functional.to_pil_image(value)
