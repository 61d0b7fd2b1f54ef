"""From an image to the inputs of a network, bit for bit as torchvision's ToImage, ToDtype and Normalize.

torchvision dispatches for longer than the arithmetic on a small image takes, and imports more slowly than torch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(picture: Image.Image) -> Tensor:
    """Return a copy of the pixels as [channels, height, width], 8 bits per channel."""
    array = np.array(picture)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def to_unit_float(values: Tensor) -> Tensor:
    """Scale integers to 0..1 by the largest value of their type, in float32; floats are only cast."""
    if values.is_floating_point():
        return values.to(torch.float32)
    return values.to(torch.float32).mul_(1.0 / torch.iinfo(values.dtype).max)


def eight_bits(values: Tensor) -> Tensor:
    """Convert floats in 0..1, or integers, to 8 bits."""
    return values if values.dtype == torch.uint8 else to_unit_float(values).mul(256 - 1e-3).to(torch.uint8)


def normalized(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise [..., channels, height, width] by the mean and standard deviation of each channel."""
    return values.sub(_per_channel(mean, values)).div_(_per_channel(std, values))


def _per_channel(numbers: Sequence[float], values: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=values.dtype, device=values.device).view(-1, 1, 1)
