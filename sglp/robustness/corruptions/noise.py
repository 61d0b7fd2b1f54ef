"""Noise. Images are [height, width, channels] in 0..1; results may be outside this range and are clipped later."""

import numpy as np


def gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise to every channel of every pixel, as in low light."""
    return image + rng.normal(0, deviation, image.shape)


def shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Apply Poisson noise: white is `photons` photons, and every channel of a pixel counts the photons it receives."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Apply salt-and-pepper noise: set this share of the channels of pixels to 0 or 1, with equal probability."""
    hit = rng.random(image.shape) < share
    return np.where(hit, rng.random(image.shape) < 0.5, image)
