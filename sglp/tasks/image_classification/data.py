"""The task of image classification; see `sglp.tasks.data`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sglp.batches import even_slices
from sglp.distributed.processes import ALL
from sglp.errors import DataError, first_line
from sglp.running import call, logits_of
from sglp.tasks.drawing import draw
from sglp.tasks.image_classification.images import Images
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source


def processor(folder, architecture: dict) -> None:
    """Return None: images need no processor."""


def dtype(device: torch.device) -> None:
    """Return None: networks compute in their stored precision."""


def open_split(source: Source, arguments: dict, prepare: dict, path: str | None, sha256: str | None, processor: None):
    """Open a split of labelled images; see `Images`."""
    return Images(source, arguments, ImagePreparation.model_validate(prepare), path, sha256)


def example(images: Images) -> Tensor:
    """Return one input [1, channels, height, width]."""
    return images.batch([0])[0]


def calibration_batches(
    images: Images, samples: int, batch_size: int, seed: int, part: slice = ALL
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (inputs, labels) of samples drawn without replacement.

    Args:
        images: the training split; calibration never reads the test split.
        samples: total number of samples.
        batch_size: largest size of a batch; see `even_slices`.
        seed: seed of the draw.
        part: the batches to yield.

    Raises:
        DataError: there are too few samples.
    """
    drawn = draw(len(images), samples, seed, f"images for training in {images.name}")
    for rows in even_slices(samples, batch_size)[part]:
        yield images.batch(drawn[rows])


def check_fit(network: nn.Module, images: Images) -> None:
    """Check that the network takes the images and has an output for every class.

    Raises:
        DataError: the network does not fit the images.
    """
    inputs = example(images)
    try:
        with torch.no_grad():
            logits = logits_of(call(network, inputs))
    except Exception as error:  # whatever a network raises, the user needs one sentence
        raise DataError(
            f"the network can't take inputs of the shape {list(inputs.shape)}, which data.prepare makes: "
            f"{first_line(error)}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] < images.prepare.classes:
        raise DataError(
            f"the network's output has the shape {list(logits.shape)}, but data.prepare.classes="
            f"{images.prepare.classes} needs [samples, {images.prepare.classes}]"
        )
