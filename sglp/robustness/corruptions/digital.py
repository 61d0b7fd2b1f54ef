"""Brightness, contrast, bending, and artefacts of stored images. Images are [height, width, channels] in 0..1."""

from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates


def brightness(image: np.ndarray, increase: float, rng: np.random.Generator) -> np.ndarray:
    """Increase the value V of HSV (a pixel's largest channel), up to 1, by scaling all channels of the pixel alike."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + increase, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the distance of every pixel from the mean of its channel to this share."""
    mean = image.mean(axis=(0, 1))
    return (image - mean) * share + mean


def elastic_transform(image: np.ndarray, parameters: tuple, rng: np.random.Generator) -> np.ndarray:
    """Apply an affine map, and displace pixels by a smooth random field (Simard et al. 2003).

    Parameters, as shares of the shorter side: the field's strength; the deviation of the Gaussian that smooths it; and
    the maximum distance, down and right, by which each of three corners of a central square is moved.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    strength, smoothness, max_move = (side * share for share in parameters)
    corners = np.array([height, width]) // 2 + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-max_move, max_move, corners.shape)
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # maps a pixel to its source
    grid = np.indices((height, width))
    source = np.tensordot(affine[:2], grid, axes=(0, 0)) + affine[2][:, None, None]
    image = _sampled(image, source, "mirror")
    field = gaussian_filter(rng.uniform(-1, 1, grid.shape), (0, smoothness, smoothness), mode="reflect", truncate=3)
    return _sampled(image, grid + strength * field, "reflect")


def pixelate(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Shrink the image to this share of its sides by averaging over boxes, and enlarge it again."""
    picture = _picture(image)
    small = picture.resize([int(side * share) for side in picture.size], Image.Resampling.BOX)
    return _pixels(small.resize(picture.size, Image.Resampling.BOX), image.shape)


def jpeg_compression(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Save the image as JPEG with this quality, and read it again."""
    file = BytesIO()
    _picture(image).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file), image.shape)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Convert an image in 0..1 to 8-bit pixels, clipped and rounded."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(to_bytes(image).squeeze(2) if image.shape[2] == 1 else to_bytes(image))


def _pixels(picture: Image.Image, shape: tuple) -> np.ndarray:
    return np.asarray(picture).reshape(shape) / 255


def _sampled(image: np.ndarray, positions: np.ndarray, border: str) -> np.ndarray:
    """Sample the image at rows and columns [2, height, width], by linear interpolation."""
    channels = [map_coordinates(channel, positions, order=1, mode=border) for channel in np.moveaxis(image, 2, 0)]
    return np.stack(channels, axis=2)
