"""How image classifiers are trained; see `sglp.tasks.training`."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglp.tasks.image_classification.augmentation import TrainingImages
from sglp.tasks.image_classification.images import Images, stack


def training_samples(images: Images, indices, recipe, seed: int) -> TrainingImages:
    """Return images for training, or without a recipe for held-out evaluation."""
    return TrainingImages(images, indices, recipe and recipe.augment, seed)


def collate(pairs: list) -> tuple[Tensor, Tensor]:
    """Make a batch of pairs (image, label)."""
    return stack(pairs)


def trainer_arguments(recipe) -> dict:
    """Return the arguments for plain SGD, as in the papers."""
    bfloat16 = recipe.precision == "bfloat16"
    if bfloat16 and not _has_bfloat16():
        print(
            "this processor has no instructions for bfloat16, so training uses float32, which is faster",
            file=sys.stderr,
        )
        bfloat16 = False
    return {"max_grad_norm": 0.0, "metric_for_best_model": "accuracy", "bf16": bfloat16}


def adapt(network: nn.Module, recipe, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """Train all parameters of the network itself."""
    return network, lambda: network


def _has_bfloat16() -> bool:
    """Check that the hardware computes in bfloat16: emulating it takes ten times as long as float32."""
    return torch.cuda.is_available() or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
