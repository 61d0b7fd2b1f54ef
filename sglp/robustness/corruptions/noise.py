"""Noise. Images are [height, width, channels] in 0..1; what comes out may lie beside that and is clipped later."""

import numpy as np


def gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise on every channel of every pixel: light was low."""
    return image + rng.normal(0, deviation, image.shape)


def shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson noise: white is so many photons, and a channel of a pixel counts those that it gets."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: this share of the channels of pixels is 0 or 1, with equal chances."""
    hit = rng.random(image.shape) < share
    return np.where(hit, rng.random(image.shape) < 0.5, image)
