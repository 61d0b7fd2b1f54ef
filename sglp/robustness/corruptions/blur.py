"""Blur. Images are [height, width, channels] in 0..1."""

from functools import cache

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter


def defocus_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a disk of (radius, deviation of the Gaussian that softens its edge), in pixels."""
    kernel = disk(*parameters)
    margin = len(kernel) // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    # By Fourier transform, as ImageNet-C's largest disk has 21 x 21 pixels.
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, s=size)[..., None]
    return np.fft.irfft2(spectrum, s=size, axes=(0, 1))[2 * margin :, 2 * margin :]


def glass_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blur, displace pixels and blur again, like frosted glass; parameters (deviation, reach in pixels, rounds)."""
    deviation, reach, rounds = parameters
    image = _gaussian(image, deviation)
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (2, *image.shape[:2]))  # -reach to reach - 1
        image = displaced(image, moves, reach)
    return _gaussian(image, deviation)


def motion_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blur as if the camera moved, up to 45 degrees off the horizontal; parameters (radius, deviation) in pixels."""
    radius, deviation = parameters
    return along(image, radius, deviation, angle=rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blur as if the camera moved towards the object: average the image with its zooms 1, 1 + step, 1 + 2 step ...

    Parameters: number of zooms, step.
    """
    number, step = parameters
    zooms = [zoomed(image, 1 + i * step) for i in range(number)]
    return (image + sum(zooms)) / (number + 1)


@cache
def disk(radius: float, softness: float) -> np.ndarray:
    """Make the kernel of `defocus_blur`: a square of odd side, softened over 3 pixels, or 5 for a radius above 8.

    The kernel sums to 1, except for a radius of 8 or 10, where its mirrored edge adds 1 %, as in the benchmark.
    """
    half, reach = (8, 1) if radius <= 8 else (radius, 2)
    squares = np.arange(-half, half + 1) ** 2
    kernel: np.ndarray = (squares[:, None] + squares <= radius**2).astype(float)
    kernel /= kernel.sum()
    gaussian = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        kernel = convolve1d(kernel, gaussian / gaussian.sum(), axis, mode="mirror")
    used = np.flatnonzero(kernel.any(axis=0))
    return kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def displaced(image: np.ndarray, moves: np.ndarray, reach: int) -> np.ndarray:
    """Replace every pixel, from the last to the first, by a copy of the pixel at distance `moves` [2, height, width].

    The `reach` + 1 pixels at the upper and left borders do not change, nor the `reach` - 1 at the others. If the source
    pixel was replaced before, its new value is copied. The benchmark's code is meant to swap the two pixels, but its
    swap of views copies; this function copies too, to give the same blur.
    """
    height, width, channels = image.shape
    index = np.arange(height * width)
    sources = index.reshape(height, width).copy()
    inside = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    sources[inside] += (moves[0] * width + moves[1])[inside]
    source = sources.ravel()
    # A source with a higher index was replaced before: follow the chain to the first one that was not.
    position = index
    while (source[position] > position).any():
        position = np.maximum(position, source[position])
    return image.reshape(-1, channels)[source[position]].reshape(image.shape)


def along(image: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """Blur along a direction as ImageMagick does: average the image moved by 0, 1, ... 2 radius pixels at an angle.

    The weights are half a Gaussian, moves are rounded to whole pixels, and border pixels are repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    margin = 2 * radius
    height, width = image.shape[:2]
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights / weights.sum(), down + margin, right + margin, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of an image to the size of the whole image, by linear interpolation."""
    for axis in (0, 1):
        size = image.shape[axis]
        crop = int(np.ceil(size / factor))
        large = round(crop * factor)
        source = (np.arange(size) + (large - size) // 2) * (crop - 1) / (large - 1) + (size - crop) // 2
        low = np.minimum(source.astype(int), size - 2)
        weight = np.expand_dims(source - low, (1, 2) if axis == 0 else (0, 2))
        image = image.take(low, axis) * (1 - weight) + image.take(low + 1, axis) * weight
    return image


def _gaussian(image: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(image, (deviation, deviation, 0), mode="nearest")
