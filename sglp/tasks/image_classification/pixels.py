"""From a picture to the numbers that a network takes: what torchvision's ToImage, ToDtype and Normalize compute.

To the bit; without their dispatching, which takes longer than the arithmetic of a small image, and without importing
torchvision, which takes longer than importing torch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(picture: Image.Image) -> Tensor:
    """8 bits a channel, [channels, height, width], a copy in memory of its own."""
    array = np.array(picture)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def to_unit_float(values: Tensor) -> Tensor:
    """Integers as shares of the largest that their kind can be, in float32; fractions stay as they are."""
    if values.is_floating_point():
        return values.to(torch.float32)
    return values.to(torch.float32).mul_(1.0 / torch.iinfo(values.dtype).max)


def eight_bits(values: Tensor) -> Tensor:
    """Shares or integers as 0 to 255."""
    return values if values.dtype == torch.uint8 else to_unit_float(values).mul(256 - 1e-3).to(torch.uint8)


def normalized(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Shares [..., channels, height, width] less the mean of each channel, over its standard deviation."""
    return values.sub(_of_channels(mean, values)).div_(_of_channels(std, values))


def _of_channels(numbers: Sequence[float], values: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=values.dtype, device=values.device).view(-1, 1, 1)
