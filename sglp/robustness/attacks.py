"""Attacks on a classifier: they change pixels by at most eps so that the loss becomes as high as possible.

Images are [samples, channels, height, width] with pixels in 0..1, and eps has the same unit. The network that `predict`
calls must be in eval mode, so that the attack on a sample does not depend on the other samples in its batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


def fgsm(predict: Predict, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Attack with the fast gradient sign method (Goodfellow et al., ICLR 2015): move every pixel by eps, up the loss.

    Args:
        predict: maps images to logits [samples, classes].
        images: images to attack.
        labels: classes of the images [samples].
        eps: the largest change of a pixel.

    Returns:
        The attacked images, detached from the autograd graph.
    """
    return (images + eps * _gradient(predict, images, labels).sign()).clamp(0, 1)


def pgd(predict: Predict, images: Tensor, labels: Tensor, eps: float, steps: int, start: Tensor) -> Tensor:
    """Attack with projected gradient descent (Madry et al., ICLR 2018): small steps of `fgsm`, clipped to eps.

    The step size is 2.5 eps / steps, as in the paper (section 5), so that any start can reach the border.

    Args:
        predict: maps images to logits [samples, classes].
        images: images to attack.
        labels: classes of the images [samples].
        eps: the largest change of a pixel.
        steps: number of steps; each costs a forward and a backward pass.
        start: noise within eps of 0 that is first added to the images; see `random_start`.

    Returns:
        The attacked images, detached from the autograd graph.
    """
    lowest = (images - eps).clamp(min=0)
    highest = (images + eps).clamp(max=1)
    attacked = (images + start).clamp(lowest, highest)
    for _ in range(steps):
        attacked = attacked + 2.5 * eps / steps * _gradient(predict, attacked, labels).sign()
        attacked = attacked.clamp(lowest, highest)
    return attacked


def random_start(images: Tensor, eps: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Draw uniform noise within eps of 0 in the shape of the images; the noise of a sample depends only on its seed."""
    noise = [np.random.default_rng(seed).uniform(-1, 1, images.shape[1:]) for seed in seeds]
    return eps * torch.from_numpy(np.stack(noise)).to(images)


def _gradient(predict: Predict, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the gradient of every sample's cross-entropy with respect to its pixels, not to parameters."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        # In float64 even a confident network has a nonzero gradient.
        loss = F.cross_entropy(predict(images).double(), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]
