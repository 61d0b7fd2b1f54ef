"""Attacks on a classifier: no pixel changes by more than eps, and the loss gets as high as the attack can make it.

Images are [samples, channels, height, width] with pixels in 0..1, and eps has the same unit. A network behind `predict`
has to be in eval mode: then every sample is attacked on its own, whatever stands beside it in its batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


def fgsm(predict: Predict, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The fast gradient sign method (Goodfellow et al., ICLR 2015): every pixel moves by eps, up the loss.

    Args:
        predict: from images to logits [samples, classes].
        images: to attack.
        labels: their classes [samples].
        eps: the largest change of a pixel.

    Returns:
        The attacked images, without a graph.
    """
    return (images + eps * _gradient(predict, images, labels).sign()).clamp(0, 1)


def pgd(predict: Predict, images: Tensor, labels: Tensor, eps: float, steps: int, start: Tensor) -> Tensor:
    """Projected gradient descent (Madry et al., ICLR 2018): small steps of `fgsm`, cut back to within eps of the image.

    The size of a step is 2.5 eps / steps, as there (section 5): the border can be reached from any start.

    Args:
        predict: from images to logits [samples, classes].
        images: to attack.
        labels: their classes [samples].
        eps: the largest change of a pixel.
        steps: how many; each costs a forward and a backward pass.
        start: what is added to the images at first, within eps of 0; see `random_start`.

    Returns:
        The attacked images, without a graph.
    """
    lowest, highest = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    attacked = (images + start).clamp(lowest, highest)
    for _ in range(steps):
        attacked = attacked + 2.5 * eps / steps * _gradient(predict, attacked, labels).sign()
        attacked = attacked.clamp(lowest, highest)
    return attacked


def random_start(images: Tensor, eps: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Uniform noise within eps of 0 in the shape of the images; a sample's depends on its seed alone."""
    noise = [np.random.default_rng(seed).uniform(-1, 1, images.shape[1:]) for seed in seeds]
    return eps * torch.from_numpy(np.stack(noise)).to(images)


def _gradient(predict: Predict, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of every sample's cross-entropy in its pixels. Parameters get none."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        # In float64, where a network that is sure still has a gradient.
        loss = F.cross_entropy(predict(images).double(), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]
