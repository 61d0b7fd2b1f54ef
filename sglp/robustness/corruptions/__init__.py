"""The 15 corruptions of CIFAR-C and ImageNet-C, without their data (Hendrycks & Dietterich, ICLR 2019).

Corrupted images are 8-bit too. Images of up to 64 pixels a side are corrupted with CIFAR-C's parameters, which were
made for 32 pixels, and larger ones with ImageNet-C's, made for 224. Parameters do not depend on the image size, so a
blur of one pixel changes an image of 8 pixels more than one of 32. Only elastic_transform scales with the image, as in
CIFAR-C's code.

The distributions are the same as for the published images, but the random draws differ, and pixels are rounded where
the published ones are truncated. Only `frost` differs more: the published images overlay photographs, which a texture
replaces here (see `sglp.robustness.corruptions.weather`), so accuracies under it can't be compared with published ones.
"""

from collections.abc import Callable

import numpy as np

from sglp.errors import DataError
from sglp.robustness.corruptions import blur, digital, noise, weather
from sglp.robustness.corruptions.parameters import CIFAR_C, IMAGENET_C

# In the order of the paper. A kind's index is part of its seed.
KINDS: dict[str, Callable[..., np.ndarray]] = {
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
LARGEST_SMALL = 64  # pixels a side: up to this size CIFAR-C's parameters are used
SMALLEST = 4  # pixels a side: smaller images are too small to blur or bend
SEED = 20190227


def corrupt(image: np.ndarray, kind: str, severity: int, index: int) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: 8-bit pixels [height, width, channels], grey (1 channel) or RGB (3).
        kind: a key of `KINDS`.
        severity: 1 (mild) to 5.
        index: index of the image in its split. Random numbers depend only on kind, severity and index, not on the
            other images or on the evaluated network.

    Returns:
        A new array of the same shape and type.

    Raises:
        DataError: the image is too small.
    """
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"images of {width}x{height} pixels are too small to corrupt, they need at least {SMALLEST} pixels a side: "
            "leave evaluation.robustness.severities empty"
        )
    parameters = (CIFAR_C if max(height, width) <= LARGEST_SMALL else IMAGENET_C)[kind][severity - 1]
    rng = np.random.default_rng([SEED, list(KINDS).index(kind), severity, index])
    return digital.to_bytes(KINDS[kind](image / 255, parameters, rng))
