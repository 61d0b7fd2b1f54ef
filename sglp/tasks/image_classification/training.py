"""How image classifiers are trained; see `sglp.tasks.training`."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglp.tasks.image_classification.augmentation import TrainingImages
from sglp.tasks.image_classification.images import Images, stack


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
