"""Blur. Images are [height, width, channels] in 0..1."""

from functools import cache

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter


def defocus_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Convolution with a disk of (radius, deviation of the Gaussian that softens its edge), in pixels."""
    kernel = disk(*parameters)
    margin = len(kernel) // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    # By Fourier transform: ImageNet-C's largest disk has 21 x 21 pixels.
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, s=size)[..., None]
    return np.fft.irfft2(spectrum, s=size, axes=(0, 1))[2 * margin :, 2 * margin :]


def glass_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, pixels displaced, and the blur again: frosted glass. (deviation, reach, rounds) in pixels."""
    deviation, reach, rounds = parameters
    image = _gaussian(image, deviation)
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (2, *image.shape[:2]))  # -reach to reach - 1
        image = displaced(image, moves, reach)
    return _gaussian(image, deviation)


def motion_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """The camera moved, up to 45 degrees off the horizontal. (radius, deviation) in pixels."""
    return along(image, *parameters, angle=rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """The camera moved towards the object: mean of the image and of (number, step) zooms 1, 1 + step, 1 + 2 step ..."""
    number, step = parameters
    zooms = [zoomed(image, 1 + i * step) for i in range(number)]
    return (image + sum(zooms)) / (number + 1)


@cache
def disk(radius: float, softness: float) -> np.ndarray:
    """The kernel of `defocus_blur`, odd and square, softened over 3 pixels, or 5 where it is large.

    It sums to 1, but for a radius of 8 or 10: there its edge is mirrored, which adds 1 %, as in the benchmark.
    """
    half, reach = (8, 1) if radius <= 8 else (radius, 2)
    squares = np.arange(-half, half + 1) ** 2
    kernel = (squares[:, None] + squares <= radius**2).astype(float)
    kernel /= kernel.sum()
    gaussian = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        kernel = convolve1d(kernel, gaussian / gaussian.sum(), axis, mode="mirror")
    used = np.flatnonzero(kernel.any(axis=0))
    return kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def displaced(image: np.ndarray, moves: np.ndarray, reach: int) -> np.ndarray:
    """Every pixel, from the last to the first, becomes a copy of the one that is `moves` [2, height, width] away.

    The `reach` + 1 pixels at the upper and left borders stay, and `reach` - 1 at the others. One that was replaced
    before hands on what it became. The benchmark's code means to swap the two pixels, but its swap of views copies:
    so do we, or the blur would be another.
    """
    height, width, channels = image.shape
    number = np.arange(height * width).reshape(height, width)
    source = number.copy()
    inside = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    source[inside] += (moves[0] * width + moves[1])[inside]
    source = source.ravel()
    # A source with a higher number was replaced before: follow it to the first one that was not.
    at = number.ravel()
    while (source[at] > at).any():
        at = np.maximum(at, source[at])
    return image.reshape(-1, channels)[source[at]].reshape(image.shape)


def along(image: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """Motion blur as ImageMagick does it: the mean of the image moved by 0, 1, ... 2 radius pixels at an angle.

    The weights fall as half a Gaussian, moves are rounded to whole pixels, pixels at the border are repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    margin, (height, width) = 2 * radius, image.shape[:2]
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights / weights.sum(), down + margin, right + margin, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of an image, enlarged to the size of the whole by linear interpolation."""
    for axis in (0, 1):
        size = image.shape[axis]
        crop = int(np.ceil(size / factor))
        large = round(crop * factor)
        at = (np.arange(size) + (large - size) // 2) * (crop - 1) / (large - 1) + (size - crop) // 2
        low = np.minimum(at.astype(int), size - 2)
        share = np.expand_dims(at - low, (1, 2) if axis == 0 else (0, 2))
        image = image.take(low, axis) * (1 - share) + image.take(low + 1, axis) * share
    return image


def _gaussian(image: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(image, (deviation, deviation, 0), mode="nearest")
