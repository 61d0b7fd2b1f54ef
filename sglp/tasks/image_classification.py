"""Image classification: batches for calibration, loss, training samples, evaluation."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sglp.batches import call, device_of, logits_of
from sglp.errors import DataError, first_line
from sglp.tasks.images import Images


def example(images: Images) -> Tensor:
    """One input [1, channels, height, width]."""
    return images.batch([0])[0]


def calibration_batches(images: Images, samples: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (inputs, labels) of samples drawn without replacement.

    Args:
        images: the training split: calibration never sees the test split.
        samples: how many in all.
        batch_size: how many a batch; the last one may be smaller.
        seed: of the draw.

    Raises:
        DataError: there are fewer samples.
    """
    if samples > len(images):
        raise DataError(f"{samples} samples are asked for, but {images.name} has {len(images)} for training")
    drawn = np.random.default_rng(seed).permutation(len(images))[:samples].tolist()
    for first in range(0, samples, batch_size):
        yield images.batch(drawn[first : first + batch_size])


def evaluate(network: nn.Module, images: Images, batch_size: int) -> dict[str, float]:
    """Accuracy (top-1 and top-5, shares of 1) and mean cross-entropy over a whole split, in eval mode.

    Raises:
        DataError: the outputs are not finite.
    """
    network.eval()
    device = device_of(network)
    top1 = top5 = 0
    loss = 0.0
    for first in tqdm(range(0, len(images), batch_size), desc="evaluate", unit="batch", disable=None):
        inputs, labels = images.batch(range(first, min(first + batch_size, len(images))))
        with torch.no_grad():
            logits = logits_of(call(network, inputs.to(device))).double().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top1 += int(best[:, 0].sum())
        top5 += int(best.sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    if not math.isfinite(loss):
        raise DataError(f"the loss on {images.name} is {loss}: the network's outputs are not finite")
    return {"accuracy": top1 / len(images), "accuracy_top5": top5 / len(images), "loss": loss / len(images)}


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
