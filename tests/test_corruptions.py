"""Corruptions against their definitions, CIFAR-C's constants, and other libraries that compute the same."""

from colorsys import hsv_to_rgb, rgb_to_hsv
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import convolve, map_coordinates, zoom
from sklearn.datasets import load_sample_images

from sglp.errors import DataError
from sglp.robustness.corruptions import KINDS, SEVERITIES, corrupt
from sglp.robustness.corruptions.blur import along, disk, displaced, zoomed
from sglp.robustness.corruptions.digital import elastic_transform
from sglp.robustness.corruptions.parameters import CIFAR_C, IMAGENET_C
from sglp.robustness.corruptions.weather import plasma_fractal

# The constants of make_cifar_c.py for the severities 1 to 5.
GOLDEN = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Return parts of two photographs, 32 x 32 pixels each."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    parts = []
    for i in range(40):
        side = int(rng.integers(100, 400))
        top = rng.integers(0, 427 - side)
        left = rng.integers(0, 640 - side)
        part = Image.fromarray(photos[i % 2][top : top + side, left : left + side])
        parts.append(np.asarray(part.resize((32, 32), Image.Resampling.BOX)))
    return parts


def shares(image: np.ndarray) -> np.ndarray:
    return image / 255


class FixedDraws:
    """A generator that returns given numbers as uniform draws."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def uniform(self, low, high, shape):
        return np.broadcast_to(self.draws.pop(0), shape)


def test_the_parameters_are_those_of_cifar_c():
    assert list(KINDS) == list(GOLDEN) == list(CIFAR_C) == list(IMAGENET_C)
    for kind, expected in GOLDEN.items():
        parameters = CIFAR_C[kind]
        if kind == "zoom_blur":
            parameters = [1 + step * np.arange(number) for number, step in parameters]
        if kind == "elastic_transform":
            parameters = [32 * np.array(row) for row in parameters]
        for ours, theirs in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (33, 47, 1), (33, 47, 3), (70, 66, 3)])
def test_every_kind_works_on_every_image(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    state = np.random.get_state()[1].copy()
    image.flags.writeable = False
    for severity in SEVERITIES:
        corrupted = corrupt(image, kind, severity, index=3)
        assert (corrupted.shape, corrupted.dtype) == (shape, np.uint8)
        assert min(shape[:2]) == 8 or not np.array_equal(corrupted, image)  # some are not visible in 8 pixels
        assert np.array_equal(corrupt(image, kind, severity, index=3), corrupted)
    assert np.array_equal(image, before)
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("kind", KINDS)
def test_only_random_kinds_depend_on_the_index(kind, photos):
    same = np.array_equal(corrupt(photos[0], kind, 3, index=0), corrupt(photos[0], kind, 3, index=1))
    deterministic = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert same == (kind in deterministic)


# The pixel distance of CIFAR-C's other three kinds does not grow: a stronger blur hides the displacement of glass,
# frost also darkens, and elastic transforms use shorter and rougher moves instead of the affine map.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("glass_blur", "frost", "elastic_transform")])
def test_a_higher_severity_changes_the_image_more(kind, photos):
    distance = [
        np.mean([np.abs(corrupt(photo, kind, severity, i) - shares(photo) * 255) for i, photo in enumerate(photos)])
        for severity in SEVERITIES
        if (kind, severity) != ("motion_blur", 4)  # like 3, except for a tail of the kernel that is almost 0
    ]
    assert all(low < high for low, high in pairwise(distance)), distance


def test_a_too_small_image_is_refused():
    with pytest.raises(
        DataError, match="images of 8x3 pixels are too small to corrupt, they need at least 4 pixels a side"
    ):
        corrupt(np.zeros((3, 8, 1), np.uint8), "snow", 1, 0)


def grey(level: int) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_mean_and_variance(severity):
    light, deviation, photons = 128 / 255, GOLDEN["gaussian_noise"][severity - 1], GOLDEN["shot_noise"][severity - 1]
    for kind, variance in (("gaussian_noise", deviation**2), ("shot_noise", light / photons)):
        noisy = shares(corrupt(grey(128), kind, severity, 0))
        assert noisy.mean() == pytest.approx(light, abs=4 * (variance / noisy.size) ** 0.5)
        assert noisy.var() == pytest.approx(variance, rel=0.06)
        assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.06  # one draw per channel


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulses_hit_their_share_with_salt_and_pepper(severity):
    noisy = corrupt(grey(128), "impulse_noise", severity, 0)
    assert set(np.unique(noisy)) == {0, 128, 255}
    share = GOLDEN["impulse_noise"][severity - 1] / 2
    for level in (0, 255):
        assert (noisy == level).mean() == pytest.approx(share, abs=4 * (share / noisy.size) ** 0.5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_of_hsv(severity, photos):
    for pixel, brighter in zip(
        photos[0].reshape(-1, 3), corrupt(photos[0], "brightness", severity, 0).reshape(-1, 3), strict=True
    ):
        hue, saturation, value = rgb_to_hsv(*(pixel / 255))
        expected = hsv_to_rgb(hue, saturation, min(value + GOLDEN["brightness"][severity - 1], 1))
        np.testing.assert_allclose(brighter, np.array(expected) * 255, atol=0.5 + 1e-9)


@pytest.mark.parametrize("level", [0, 100, 250])
def test_brightness_of_grey(level):
    image = np.full((8, 8, 1), level, np.uint8)
    assert np.unique(corrupt(image, "brightness", 3, 0)) == min(round(level + 0.15 * 255), 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_draws_channels_towards_their_means(severity, photos):
    image, share = photos[1].astype(float), GOLDEN["contrast"][severity - 1]
    expected = share * image + (1 - share) * np.array([image[..., channel].mean() for channel in range(3)])
    np.testing.assert_allclose(corrupt(photos[1], "contrast", severity, 0), expected, atol=0.5 + 1e-9)


def test_pixelate_averages_boxes_and_repeats_them():
    image = np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    assert IMAGENET_C["pixelate"][1] == 0.5  # boxes of 2 x 2 pixels
    boxes = image.reshape(40, 2, 35, 2, 3).astype(float).mean(axis=(1, 3))
    expected = boxes.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(corrupt(image, "pixelate", 2, 0), expected, atol=1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_keeps_this_share_of_the_rows(severity):
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], 20, axis=1)
    rows = len(np.unique(corrupt(ramp, "pixelate", severity, 0)))
    assert rows == int(32 * GOLDEN["pixelate"][severity - 1])


# Annex K of the JPEG standard: the step sizes of the 8 x 8 frequencies of brightness at quality 50.
STEP_SIZES = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_compression_rounds_the_frequencies_of_blocks(severity, photos):
    quality = GOLDEN["jpeg_compression"][severity - 1]
    scale = 200 - 2 * quality if quality >= 50 else 5000 / quality
    table = np.floor((np.array(STEP_SIZES.split(), float).reshape(8, 8) * scale + 50) / 100)
    luma = np.asarray(Image.fromarray(photos[2]).convert("L"))
    blocks = luma.reshape(4, 8, 4, 8).swapaxes(1, 2) - 128.0
    rounded = table * np.rint(dctn(blocks, axes=(2, 3), norm="ortho") / table)
    expected = (idctn(rounded, axes=(2, 3), norm="ortho") + 128).swapaxes(1, 2).reshape(32, 32, 1).clip(0, 255)
    compressed = corrupt(luma[..., None], "jpeg_compression", severity, 0)
    assert np.abs(compressed - expected).mean() < 0.5  # intermediate rounding
    coloured = Image.fromarray(corrupt(photos[2], "jpeg_compression", severity, 0)).convert("L")
    assert np.abs(np.asarray(coloured)[..., None] - expected).mean() < 1


@pytest.mark.parametrize("parameters", [*CIFAR_C["defocus_blur"], *IMAGENET_C["defocus_blur"][:3]])
def test_defocus_is_the_convolution_with_a_soft_disk(parameters):
    radius, softness = parameters
    flat = {(y, x): 1.0 for y in range(-8, 9) for x in range(-8, 9) if y * y + x * x <= radius**2}
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    soft = np.zeros((19, 19))
    for (y, x), value in flat.items():
        soft[y + 8 : y + 11, x + 8 : x + 11] += value / len(flat) * np.outer(weights, weights) / weights.sum() ** 2
    middle = len(disk(*parameters)) // 2
    np.testing.assert_allclose(disk(*parameters), soft[9 - middle : 10 + middle, 9 - middle : 10 + middle], atol=1e-12)
    image = np.random.default_rng(0).random((20, 17, 2))
    expected = convolve(image, soft[..., None], mode="mirror")
    np.testing.assert_allclose(KINDS["defocus_blur"](image, parameters, None), expected, atol=1e-10)


@pytest.mark.parametrize(("radius", "total"), [(1.5, 1), (6, 1), (8, 1.0129755), (10, 1.0107858)])
def test_a_large_disk_has_the_same_sum_as_in_opencv(radius, total):
    assert disk(radius, 0.5).sum() == pytest.approx(total, abs=1e-6)  # GaussianBlur, which mirrors the disk's edge


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_displaces_pixels_as_the_benchmark_does(reach):
    rng = np.random.default_rng(0)
    image = rng.random((21, 26, 3))
    moves = rng.integers(-reach, reach, (2, 21, 26))
    expected = image.copy()
    for h in range(21 - reach, reach, -1):
        for w in range(26 - reach, reach, -1):
            y, x = h + moves[0, h, w], w + moves[1, h, w]
            expected[h, w], expected[y, x] = expected[y, x], expected[h, w]  # swapping views copies
    assert np.array_equal(displaced(image, moves, reach), expected)


@pytest.mark.parametrize(("radius", "deviation", "angle"), [(6, 1, 0), (9, 2.5, 31.5), (14, 12, -101), (2, 1, -45)])
def test_motion_is_the_mean_along_a_line_with_half_a_gaussian(radius, deviation, angle):
    image = np.random.default_rng(0).random((12, 9, 2))
    expected, total = np.zeros_like(image), 0.0
    for step in range(2 * radius + 1):
        y, x = (np.ceil(step * f(np.pi * angle / 180) - 0.5) for f in (np.sin, np.cos))
        source = np.indices((12, 9)) + np.array([y, x])[:, None, None]
        moved = [map_coordinates(image[..., channel], source, order=1, mode="nearest") for channel in range(2)]
        weight = np.exp(-(step**2) / (2 * deviation**2))
        expected += weight * np.stack(moved, axis=2)
        total += weight
    np.testing.assert_allclose(along(image, radius, deviation, angle), expected / total, atol=1e-12)


@pytest.mark.parametrize("size", [8, 32, 47])
@pytest.mark.parametrize("factor", [1, 1.06, 1.15, 1.25, 2.25])
def test_zoom_equals_scipy(size, factor):
    image = np.random.default_rng(0).random((size, size, 3))
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    large = zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
    trim = (len(large) - size) // 2
    expected = large[trim : trim + size, trim : trim + size]
    np.testing.assert_allclose(zoomed(image, factor), expected, atol=1e-12)


def test_zoom_blur_is_the_mean_of_the_zooms_and_the_image(photos):
    image = shares(photos[3])
    zooms = [zoomed(image, factor) for factor in GOLDEN["zoom_blur"][2]]
    expected = 255 * np.mean([image, *zooms], axis=0)
    np.testing.assert_allclose(corrupt(photos[3], "zoom_blur", 3, 0), expected, atol=0.5 + 1e-9)


def test_plasma_by_hand_and_its_roughness():
    # Corners are 0, the centre is 1, and each edge is the mean of two corners and two centres, as borders are joined.
    assert np.array_equal(plasma_fractal(2, 3, FixedDraws(1.0, 0.0, 0.0)), [[0, 0.5], [0.5, 1]])
    # Without noise an edge is the mean of its four neighbours.
    plasma = plasma_fractal(
        8, 3, FixedDraws(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.random.default_rng(0).random((4, 4)), 0.0, 0.0)
    )
    around = sum(np.roll(plasma, shift, axis) for shift in (-1, 1) for axis in (0, 1)) / 4
    edges = np.indices((8, 8)).sum(axis=0) % 2 == 1
    np.testing.assert_allclose(plasma[edges], around[edges], atol=1e-12)
    maps = [plasma_fractal(60, decay, np.random.default_rng(0)) for decay in (3, 2, 1.5)]
    assert all(m.shape == (64, 64) and m.min() == 0 and m.max() == 1 for m in maps)
    roughness = [np.abs(np.diff(m, axis=0)).mean() for m in maps]
    assert roughness[0] < roughness[1] < roughness[2]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_a_plasma_to_the_image(severity, photos):
    weight, _ = GOLDEN["fog"][severity - 1]
    dim = photos[4] // 2
    image = shares(dim)
    # A white image gets the same plasma p and becomes (1 + weight p) / (1 + weight).
    white = shares(corrupt(np.full((32, 32, 3), 255, np.uint8), "fog", severity, 0))
    plasma = (white * (1 + weight) - 1) / weight
    assert (plasma.min(), plasma.max()) == pytest.approx((0, 1), abs=0.02)
    expected = (image + weight * plasma) * image.max() / (image.max() + weight)
    np.testing.assert_allclose(shares(corrupt(dim, "fog", severity, 0)), expected, atol=0.006)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_adds_the_same_texture_to_every_image(severity, photos):
    weight, weight_of_frost = GOLDEN["frost"][severity - 1]
    texture = corrupt(np.zeros((32, 32, 3), np.uint8), "frost", severity, 0) / 255
    assert 0.2 * weight_of_frost < texture.mean() < 0.8 * weight_of_frost
    assert texture[..., 2].max() == pytest.approx(weight_of_frost, abs=0.01)  # ice is bluish white
    expected = (weight * shares(photos[5]) + texture).clip(0, 1)
    np.testing.assert_allclose(shares(corrupt(photos[5], "frost", severity, 0)), expected, atol=0.005)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_whitens_and_has_flakes(severity, photos):
    *_, weight = GOLDEN["snow"][severity - 1]
    black = shares(corrupt(np.zeros((32, 32, 3), np.uint8), "snow", severity, 0))
    assert np.array_equal(black, np.rot90(black, 2))  # flakes are added twice, once rotated
    assert black.min() >= 0.5 * (1 - weight) - 0.002
    flakes = black - 0.5 * (1 - weight)
    assert 0.003 < flakes.mean() < 0.3
    image = shares(photos[6])
    grey = image @ [0.299, 0.587, 0.114]
    whiter = weight * image + (1 - weight) * np.maximum(image, 1.5 * grey[..., None] + 0.5)
    expected = (whiter + flakes).clip(0, 1)
    snowy = shares(corrupt(photos[6], "snow", severity, 0))
    known = black < 1  # where flakes are not clipped
    np.testing.assert_allclose(snowy[known], expected[known], atol=0.006)


def test_elastic_transform_with_zero_draws_is_the_identity(photos):
    image = shares(photos[7])
    transformed = elastic_transform(image, (0.1, 0.04, 0.05), FixedDraws(0.0, 0.0))
    np.testing.assert_allclose(transformed, image, atol=1e-9)


def test_elastic_transform_moves_as_drawn(photos):
    image = shares(photos[7])
    # If all three corners move alike, the whole image moves with them.
    transformed = elastic_transform(image, (0, 0, 0.1), FixedDraws([2.0, 1.0], 0.0))
    np.testing.assert_allclose(transformed[2:, 1:], image[:-2, :-1], atol=1e-9)
    # The last of the corners (26, 26), (26, 6) and (6, 6) moves 4 to the right: the higher a row, the more it leans.
    transformed = elastic_transform(image, (0, 0, 0.1), FixedDraws([[0, 0], [0, 0], [0, 4]], 0.0))
    for (row, column), source in {(26, 26): 26, (26, 6): 6, (6, 10): 6, (16, 20): 18}.items():
        np.testing.assert_allclose(transformed[row, column], image[row, source], atol=1e-9)
    # A field of half a column to the right, scaled by 4: all pixels come from 2 columns to the right.
    field = np.zeros((2, 32, 32))
    field[1] = 0.5
    transformed = elastic_transform(image, (0.125, 0.05, 0), FixedDraws(0.0, field))
    np.testing.assert_allclose(transformed[:, :-2], image[:, 2:], atol=1e-9)
