"""Brightness, contrast, bending and what happens to stored images. Images are [height, width, channels] in 0..1."""

from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates


def brightness(image: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    """More of HSV's value V, the largest channel of a pixel, up to 1. Hue and saturation stay: all channels scale."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """This share of the distance of every pixel to its channel's mean stays."""
    mean = image.mean(axis=(0, 1))
    return (image - mean) * share + mean


def elastic_transform(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """An affine map, and pixels displaced by a smooth random field (Simard et al. 2003).

    Parameters, as shares of the shorter side: the field's strength and the deviation of the Gaussian that smooths it,
    and how far each of three corners of a square in the middle is moved at most, down and right.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    strength, smoothness, most = (side * share for share in parameters)
    corners = np.array([height, width]) // 2 + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-most, most, corners.shape)
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # where a pixel comes from
    grid = np.indices((height, width))
    source = np.tensordot(affine[:2], grid, axes=(0, 0)) + affine[2][:, None, None]
    image = _sampled(image, source, "mirror")
    field = gaussian_filter(rng.uniform(-1, 1, grid.shape), (0, smoothness, smoothness), mode="reflect", truncate=3)
    return _sampled(image, grid + strength * field, "reflect")


def pixelate(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to this share of its sides by averaging over boxes, and enlarged again."""
    picture = _picture(image)
    small = picture.resize([int(side * share) for side in picture.size], Image.Resampling.BOX)
    return _pixels(small.resize(picture.size, Image.Resampling.BOX), image.shape)


def jpeg_compression(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Stored as JPEG in this quality, and read again."""
    file = BytesIO()
    _picture(image).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file), image.shape)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """8-bit pixels of an image in 0..1, clipped and rounded."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(to_bytes(image).squeeze(2) if image.shape[2] == 1 else to_bytes(image))


def _pixels(picture: Image.Image, shape: tuple) -> np.ndarray:
    return np.asarray(picture).reshape(shape) / 255


def _sampled(image: np.ndarray, at: np.ndarray, border: str) -> np.ndarray:
    """The image at rows and columns [2, height, width], by linear interpolation."""
    channels = [map_coordinates(channel, at, order=1, mode=border) for channel in np.moveaxis(image, 2, 0)]
    return np.stack(channels, axis=2)
