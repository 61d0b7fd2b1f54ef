"""The 15 corruptions of CIFAR-C and ImageNet-C, without their data (Hendrycks & Dietterich, ICLR 2019).

Images stay 8-bit. Up to 64 pixels a side they are corrupted with CIFAR-C's parameters, which were made for 32 pixels,
and larger ones with ImageNet-C's, made for 224. Parameters hold whatever the size is, so that a blur of one pixel does
more to an image of 8 pixels than to one of 32; only elastic_transform grows with the image, as in CIFAR-C's code.

The distributions are those of the published images, the random draws are not; pixels are rounded where the published
ones are cut off. Only `frost` differs more: it overlays photographs, for which a texture stands in here (see
`sglp.robustness.corruptions.weather`), so that accuracies under it can't be compared with published ones.
"""

import numpy as np

from sglp.errors import DataError
from sglp.robustness.corruptions import blur, digital, noise, weather
from sglp.robustness.corruptions.parameters import CIFAR_C, IMAGENET_C

# In the order of the paper. A kind's place is part of its seed.
KINDS = {
    function.__name__: function
    for function in (
        noise.gaussian_noise,
        noise.shot_noise,
        noise.impulse_noise,
        blur.defocus_blur,
        blur.glass_blur,
        blur.motion_blur,
        blur.zoom_blur,
        weather.snow,
        weather.frost,
        weather.fog,
        digital.brightness,
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        digital.jpeg_compression,
    )
}
SEVERITIES = (1, 2, 3, 4, 5)
LARGEST_SMALL = 64  # pixels a side: up to here the parameters are CIFAR-C's
SMALLEST = 4  # pixels a side, below which there is nothing to blur or to bend
SEED = 20190227


def corrupt(image: np.ndarray, kind: str, severity: int, index: int) -> np.ndarray:
    """An image as one corruption leaves it.

    Args:
        image: 8-bit pixels [height, width, channels], grey (1 channel) or RGB (3).
        kind: a key of `KINDS`.
        severity: 1 (mild) to 5.
        index: of the image in its split. Random numbers depend on kind, severity and index alone: not on the other
            images, nor on the network that is judged by them.

    Returns:
        A new array of the same shape and type.

    Raises:
        DataError: the image is too small.
    """
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"images of {width}x{height} pixels can't be corrupted, they need {SMALLEST} a side: "
            "evaluation.robustness.severities must be empty"
        )
    parameters = (CIFAR_C if max(height, width) <= LARGEST_SMALL else IMAGENET_C)[kind][severity - 1]
    rng = np.random.default_rng([SEED, list(KINDS).index(kind), severity, index])
    return digital.to_bytes(KINDS[kind](image / 255, parameters, rng))
