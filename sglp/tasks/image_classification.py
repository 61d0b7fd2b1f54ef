"""The task of image classification; see `sglp.tasks.task`."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sglp
from sglp import processes
from sglp.architecture import remember
from sglp.batches import call, device_of, logits_of, slices
from sglp.cost import count_macs
from sglp.errors import DataError, first_line
from sglp.pretrained import CONFIG
from sglp.processes import ALL
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks.draws import draw
from sglp.tasks.image_workload import ImageEvaluation, ImagePreparation
from sglp.tasks.images import Images, stack
from sglp.tasks.samples import TrainingImages
from sglp.tasks.transforms import make_transforms
from sglp.tasks.work import Work
from sglp.tasks.workload import Architecture, Source, Weights
from sglp.warm_start import warm_start


def check_workload(content: dict) -> None:
    """Check that all transforms can be made."""
    recipes = (content["pretrain"]["augment"], content["finetune"]["augment"])
    for entries in (content["data"]["prepare"]["transforms"], *recipes):
        make_transforms(entries)


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
    return {"max_grad_norm": 0.0, "metric_for_best_model": "accuracy", "bf16": bfloat16}


def adapt(network: nn.Module, recipe, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """All of the network is trained itself."""
    return network, lambda: network


def evaluate(
    network: nn.Module, images: Images, settings: dict, processor: None = None, tasks: str | None = None
) -> tuple[dict, list]:
    """Accuracy (top-1 and top-5, shares of 1) and mean cross-entropy over a whole split, in eval mode.

    Where the settings ask for it, "robustness" has what `sglp.tasks.robustness` measures on a part of the split.

    Raises:
        DataError: the outputs are not finite.
    """
    dials = ImageEvaluation.model_validate(settings)
    batch_size = dials.batch_size
    network.eval()
    device = device_of(network)

    def judge(first: int) -> tuple[int, int, float]:
        inputs, labels = images.batch(range(first, min(first + batch_size, len(images))))
        with torch.no_grad():
            logits = logits_of(call(network, inputs.to(device))).double().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        return int(best[:, 0].sum()), int(best.sum()), float(F.cross_entropy(logits, labels, reduction="sum"))

    judged = processes.shared_map(judge, range(0, len(images), batch_size), desc="evaluate", unit="batch")
    top1, top5, loss = (sum(column) for column in zip(*judged, strict=True))
    if not math.isfinite(loss):
        raise DataError(f"the loss on {images.name} is {loss}: the network's outputs are not finite")
    count = len(images)
    metrics = {"accuracy": top1 / count, "accuracy_top5": top5 / count, "loss": loss / count, "samples": count}
    if dials.robustness is not None:
        from sglp.tasks.robustness import robustness  # and what corrupts images, which other stages don't need

        metrics["robustness"] = robustness(network, images, dials.robustness, batch_size)
    return metrics, []


def macs(network: nn.Module, images: Images) -> dict[str, int]:
    """Multiply-accumulates and floating-point operations of one image."""
    count = count_macs(network, example(images).to(device_of(network)))
    return {"macs": count, "flops": 2 * count}


def work(network: nn.Module, images: Images, settings: dict, size: int) -> list[Work]:
    """One forward pass of a batch."""
    image = example(images).to(device_of(network))
    inputs = image.expand(size, *image.shape[1:]).contiguous()
    return [Work("forward", lambda: network(inputs), size, "samples", inputs)]
