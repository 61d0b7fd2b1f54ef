"""Weather. Images are [height, width, channels] in 0..1; what comes out may lie beside that and is clipped later."""

import numpy as np

from sglp.robustness.corruptions.blur import along, zoomed

ICE = np.array([0.85, 0.93, 1.0])  # the colour of frost; the mean of it on grey images
LUMA = np.array([0.299, 0.587, 0.114])  # the weights of red, green and blue in brightness (ITU-R BT.601)


def snow(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """A whiter image with flakes in flight.

    Parameters: mean and deviation of the noise that flakes are cut from, its zoom, the level below which there is
    none, radius and deviation of their motion blur, and the weight of the image as it was against a whiter one.
    """
    mean, deviation, zoom, level, radius, blur, weight = parameters
    flakes = zoomed(rng.normal(mean, deviation, (*image.shape[:2], 1)), zoom)
    flakes = along(np.where(flakes < level, 0, flakes).clip(0, 1), radius, blur, angle=rng.uniform(-135, -45))
    grey = (image @ LUMA)[..., None] if image.shape[2] == 3 else image
    whiter = weight * image + (1 - weight) * np.maximum(image, 1.5 * grey + 0.5)
    return whiter + flakes + flakes[::-1, ::-1]


def frost(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Frost on the lens: a sum of (weight of the image, weight of the frost).

    The published images have photographs of frost here. Ours is a texture instead: the ridges of a rough plasma, veins
    of bluish white. Accuracies under it can't be compared with those on the published images.
    """
    weight, weight_of_frost = parameters
    height, width, channels = image.shape
    plasma = plasma_fractal(max(height, width), 1.5, rng)[:height, :width, None]
    ridges = (1 - np.abs(2 * plasma - 1)) ** 2
    return weight * image + weight_of_frost * ridges * (ICE if channels == 3 else ICE.mean())


def fog(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """A plasma laid over the image, scaled back to the image's own range. (weight, decay of the plasma)."""
    weight, decay = parameters
    height, width = image.shape[:2]
    plasma = plasma_fractal(max(height, width), decay, rng)[:height, :width, None]
    brightest = image.max()
    return (image + weight * plasma) * brightest / (brightest + weight)


def plasma_fractal(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds by the diamond-square algorithm, square, in 0..1. The borders are joined: opposite ones are neighbours.

    Args:
        size: what the side must have at least; it becomes a power of 2.
        decay: the noise gets so many times (squared) smaller whenever the grid gets twice as fine.
        rng: for the noise.
    """
    step = 1 << (size - 1).bit_length()
    heights = np.zeros((step, step))
    noise = 100.0

    def between(neighbours: np.ndarray) -> np.ndarray:
        """The mean of four neighbours, and noise."""
        return neighbours / 4 + noise * rng.uniform(-noise, noise, neighbours.shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        across, down = corners + np.roll(corners, -1, axis=1), corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = between(across + np.roll(across, -1, axis=0))
        centres = heights[half::step, half::step]
        heights[::step, half::step] = between(across + centres + np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = between(down + centres + np.roll(centres, 1, axis=1))
        step, noise = half, noise / decay
    heights -= heights.min()
    return heights / heights.max()
