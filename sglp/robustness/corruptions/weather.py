"""Weather. Images are [height, width, channels] in 0..1; results may be outside this range and are clipped later."""

import numpy as np

from sglp.robustness.corruptions.blur import along, zoomed

ICE = np.array([0.85, 0.93, 1.0])  # the colour of frost; grey images use its mean
LUMA = np.array([0.299, 0.587, 0.114])  # the weights of red, green and blue in brightness (ITU-R BT.601)


def snow(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Make the image whiter and add falling flakes.

    Parameters: mean and deviation of the noise that flakes are made from, its zoom, the level below which the noise is
    set to 0, radius and deviation of the flakes' motion blur, and the weight of the original against a whiter image.
    """
    mean, deviation, zoom, level, radius, blur, weight = parameters
    flakes = zoomed(rng.normal(mean, deviation, (*image.shape[:2], 1)), zoom)
    flakes = along(np.where(flakes < level, 0, flakes).clip(0, 1), radius, blur, angle=rng.uniform(-135, -45))
    grey = (image @ LUMA)[..., None] if image.shape[2] == 3 else image
    whiter = weight * image + (1 - weight) * np.maximum(image, 1.5 * grey + 0.5)
    return whiter + flakes + flakes[::-1, ::-1]


def frost(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Add frost on the lens, with parameters (weight of the image, weight of the frost).

    The published images overlay photographs of frost. This function uses a texture instead: the ridges of a rough
    plasma, which are veins of bluish white. Accuracies can't be compared with those on the published images.
    """
    weight, weight_of_frost = parameters
    height, width, channels = image.shape
    plasma = plasma_fractal(max(height, width), 1.5, rng)[:height, :width, None]
    ridges = (1 - np.abs(2 * plasma - 1)) ** 2
    return weight * image + weight_of_frost * ridges * (ICE if channels == 3 else ICE.mean())


def fog(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Add a plasma and scale the result back to the image's range; parameters (weight, decay of the plasma)."""
    weight, decay = parameters
    height, width = image.shape[:2]
    plasma = plasma_fractal(max(height, width), decay, rng)[:height, :width, None]
    brightest = image.max()
    return (image + weight * plasma) * brightest / (brightest + weight)


def plasma_fractal(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Make square clouds in 0..1 by the diamond-square algorithm. Opposite borders are neighbours.

    Args:
        size: minimum side in pixels; it is rounded up to a power of 2.
        decay: the noise is divided by decay squared whenever the grid becomes twice as fine.
        rng: generator of the noise.
    """
    step = 1 << (size - 1).bit_length()
    heights = np.zeros((step, step))
    noise = 100.0

    def between(neighbours: np.ndarray) -> np.ndarray:
        """Return the mean of four neighbours plus noise."""
        return neighbours / 4 + noise * rng.uniform(-noise, noise, neighbours.shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, axis=1)
        down = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = between(across + np.roll(across, -1, axis=0))
        centres = heights[half::step, half::step]
        heights[::step, half::step] = between(across + centres + np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = between(down + centres + np.roll(centres, 1, axis=1))
        step = half
        noise /= decay
    heights -= heights.min()
    return heights / heights.max()
