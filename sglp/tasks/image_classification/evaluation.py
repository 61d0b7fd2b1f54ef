"""How image classifiers are evaluated; see `sglp.tasks.evaluation`."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from sglp.cost import count_macs
from sglp.distributed import processes
from sglp.errors import DataError
from sglp.running import call, device_of, logits_of
from sglp.tasks.image_classification.data import example
from sglp.tasks.image_classification.images import Images
from sglp.tasks.image_classification.transforms import make_transforms
from sglp.tasks.schemas.image_classification import ImageEvaluation


def check_workload(content: dict) -> None:
    """Check that all transforms can be created."""
    recipes = (content["pretrain"]["augment"], content["finetune"]["augment"])
    for entries in (content["data"]["prepare"]["transforms"], *recipes):
        make_transforms(entries)


def evaluate(
    network: nn.Module, images: Images, settings: dict, processor: None = None, tasks: str | None = None
) -> tuple[dict, list]:
    """Compute accuracy (top-1 and top-5, 0 to 1) and mean cross-entropy over a whole split, in eval mode.

    If the settings include it, "robustness" has the results of `robustness` on a part of the split.

    Raises:
        DataError: the outputs are not finite.
    """
    evaluation = ImageEvaluation.model_validate(settings)
    batch_size = evaluation.batch_size
    network.eval()
    device = device_of(network)

    def evaluate_batch(first: int) -> tuple[int, int, float]:
        inputs, labels = images.batch(range(first, min(first + batch_size, len(images))))
        with torch.no_grad():
            logits = logits_of(call(network, inputs.to(device))).double().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        return int(best[:, 0].sum()), int(best.sum()), float(F.cross_entropy(logits, labels, reduction="sum"))

    results = processes.shared_map(evaluate_batch, range(0, len(images), batch_size), desc="evaluate", unit="batch")
    top1, top5, loss = (sum(column) for column in zip(*results, strict=True))
    if not math.isfinite(loss):
        raise DataError(f"the loss on {images.name} is {loss}: the network's outputs are not finite")
    count = len(images)
    metrics = {"accuracy": top1 / count, "accuracy_top5": top5 / count, "loss": loss / count, "samples": count}
    if evaluation.robustness is not None:
        from sglp.tasks.image_classification.robustness import (
            robustness,  # takes time to import, and is needed only here
        )

        metrics["robustness"] = robustness(network, images, evaluation.robustness, batch_size)
    return metrics, []


def macs(network: nn.Module, images: Images) -> dict[str, int]:
    """Count multiply-accumulates and floating-point operations of one image."""
    count = count_macs(network, example(images).to(device_of(network)))
    return {"macs": count, "flops": 2 * count}
