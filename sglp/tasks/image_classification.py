"""The task of image classification; see `sglp.tasks.task`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import sglp
from sglp.architecture import remember
from sglp.batches import call, logits_of, slices
from sglp.errors import DataError, first_line
from sglp.pretrained import CONFIG
from sglp.processes import ALL
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks.draws import draw
from sglp.tasks.image_workload import ImagePreparation
from sglp.tasks.images import Images, stack
from sglp.tasks.samples import TrainingImages
from sglp.tasks.workload import Architecture, Source, Weights
from sglp.warm_start import warm_start


def build(architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
    """The network, with weights of its factory or of a file, or without; of a saved network also without its layers.

    A folder for `from_pretrained` brings its configuration where the workload has none.
    """
    if path is not None and (Path(path) / CONFIG).is_file() and not architecture.kwargs:
        network = sglp.build(architecture.factory, seed=seed, weights={"pretrained": path})
        if (Path(path) / ARCHITECTURE).is_file():  # its layers go by their dense names still
            remember(network, saved_architecture(path))
        return network
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=weights.kwargs)
    if path is not None and Path(path).is_dir():
        network, fresh = warm_start(network, path)
        if fresh:
            print(f"{path} has other shapes of {', '.join(fresh)}, which begin at random", file=sys.stderr)
    elif path is not None:
        sglp.load_weights(network, path)
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict) -> None:
    """Images need none."""


def processor(folder, architecture: dict) -> None:
    """Images need none."""


def dtype(device: torch.device) -> None:
    """Networks compute in what they are stored in."""


def open_split(source: Source, arguments: dict, prepare: dict, path: str | None, sha256: str | None, processor: None):
    """A split of labelled images; see `Images`."""
    return Images(source, arguments, ImagePreparation.model_validate(prepare), path, sha256)


def example(images: Images) -> Tensor:
    """One input [1, channels, height, width]."""
    return images.batch([0])[0]


def calibration_batches(
    images: Images, samples: int, batch_size: int, seed: int, part: slice = ALL
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (inputs, labels) of samples drawn without replacement.

    Args:
        images: the training split: calibration never sees the test split.
        samples: how many in all.
        batch_size: how many a batch at most; see `slices`.
        seed: of the draw.
        part: which of the batches.

    Raises:
        DataError: there are fewer samples.
    """
    drawn = draw(len(images), samples, seed, f"images for training in {images.name}")
    for some in slices(samples, batch_size)[part]:
        yield images.batch(drawn[some])


def check_fit(network: nn.Module, images: Images) -> None:
    """Check that the network takes the images and has an output for every class.

    Raises:
        DataError: it does not.
    """
    inputs = example(images)
    try:
        with torch.no_grad():
            logits = logits_of(call(network, inputs))
    except Exception as error:  # whatever a network raises, the user needs one sentence
        raise DataError(
            f"the network can't take inputs of the shape {list(inputs.shape)}, as data.prepare makes them: "
            f"{first_line(error)}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] < images.prepare.classes:
        raise DataError(
            f"the network's output has the shape {list(logits.shape)}, but data.prepare.classes="
            f"{images.prepare.classes} needs [samples, {images.prepare.classes}]"
        )


def training_samples(images: Images, indices, recipe, seed: int) -> TrainingImages:
    """Images to train on, or without a recipe those to judge by."""
    return TrainingImages(images, indices, recipe and recipe.augment, seed)


def collate(pairs: list) -> tuple[Tensor, Tensor]:
    """A batch of pairs (image, label)."""
    return stack(pairs)


def trainer_arguments(recipe) -> dict:
    """Plain SGD, as the papers do it."""
    bfloat16 = recipe.precision == "bfloat16"
    if bfloat16 and not _has_bfloat16():
        print("this processor has no instructions for bfloat16: float32 is faster on it and is taken", file=sys.stderr)
        bfloat16 = False
    return {"max_grad_norm": 0.0, "metric_for_best_model": "accuracy", "bf16": bfloat16}


def adapt(network: nn.Module, recipe, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """All of the network is trained itself."""
    return network, lambda: network


def _has_bfloat16() -> bool:
    """Whether the hardware computes in bfloat16: a processor that imitates it takes ten times as long as in float32."""
    return torch.cuda.is_available() or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
