"""The user's images, for ``sglp compress``."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sglp.batches import even_slices
from sglp.commands.networks import View
from sglp.commands.photos import Photos
from sglp.commands.samples import FEWEST, HELD_OUT, Sizes
from sglp.cost import count_macs
from sglp.errors import DataError
from sglp.running import call, device_of, logits_of
from sglp.tasks.drawing import draw
from sglp.tasks.image_classification.images import Images
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source

MOST_IMAGES = 2000  # that measure the networks


class ImageSamples:
    """Images of a folder; a tenth of them, drawn with the seed, is held out.

    Subfolders are classes if the network has as many outputs. Otherwise the dense network's answers are the targets,
    and what is measured is how often a network agrees with them.

    Args:
        folder: the folder.
        view: how the network sees an image.
        network: the dense network.
        seed: of the draw.

    Raises:
        DataError: there are too few images, or the network does not take them.
    """

    task, unit = "image-classification", "image"
    sizes = Sizes(calibration=(512, 128), scoring=(64, 64), reconstruction=(512, 128), pooling="flatten")

    def __init__(self, folder: str, view: View, network: nn.Module, seed: int):
        self.name, self.dense = folder, network
        classes = Photos(folder).classes
        channels = len(view.mean)
        prepare = ImagePreparation.model_validate(
            {
                "image_column": "image",
                "label_column": "label",
                "classes": max(len(classes), 1),
                "channels": channels,
                "transforms": [{"Resize": {"size": view.resize}}, {"CenterCrop": {"size": view.size}}],
                "mean": list(view.mean),
                "std": list(view.std),
            }
        )
        source = Source(loader="sglp.commands.photos:Photos", name=None, revision=None)
        self.images = Images(source, {}, prepare, folder)
        order = draw(len(self.images), len(self.images), seed, "images")
        held_out = max(1, int(len(order) * HELD_OUT))
        self.order, self.held_out = order[: len(order) - held_out], order[len(order) - held_out :][:MOST_IMAGES]
        if len(self.order) < FEWEST:
            raise DataError(f"{folder} has {len(self.images)} images, and compression needs at least {FEWEST + 1}")
        self.sizes = self.sizes.within(len(self.order))
        self.labelled = self._outputs() == len(classes)
        self.quality = "accuracy" if self.labelled else "agreement"

    def _outputs(self) -> int:
        try:
            logits = self._logits(self.dense, self.example())
        except Exception as error:  # whatever a network raises, the user needs one sentence
            raise DataError(
                f"the network can't take images of the shape {list(self.example().shape[1:])}: set --size, and for "
                "grey images --mean and --std with one value"
            ) from error
        if logits.ndim != 2:
            raise DataError(f"the network returns {list(logits.shape)} for one image, and not one row of class scores")
        return logits.shape[1]

    @staticmethod
    def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(call(network, inputs.to(device_of(network)))).cpu()

    def _pairs(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in even_slices(len(indices), size):
            inputs, labels = self.images.batch(indices[rows])
            yield inputs, labels if self.labelled else self._logits(self.dense, inputs).argmax(1)

    def example(self) -> Tensor:
        """Return one image [1, channels, height, width]."""
        return self.images.batch([0])[0]

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in random order, and their classes."""
        return self._pairs(self.order, self.sizes.calibration[1])

    def measure(self, network: nn.Module) -> float:
        """Measure the share of held-out images whose class has the largest output."""
        pairs = self._pairs(self.held_out, 64)
        right = sum(int((self._logits(network, inputs).argmax(1) == labels).sum()) for inputs, labels in pairs)
        return right / len(self.held_out)

    def macs(self, network: nn.Module) -> int:
        """Count the multiply-accumulates of an image."""
        return count_macs(network, self.example().to(device_of(network)))
