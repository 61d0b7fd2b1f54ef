"""Fisher segmentation compared with brute force and with ruptures."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import ruptures

from sglp import fisher_segmentation
from sglp.errors import SegmentationError
from sglp.segmentation import choose_k, segmentation_table, table_of

FEATURES = pytest.mark.parametrize("feature", ["rows", "row_sum"])


def random_matrix(layers, seed):
    return np.random.default_rng(seed).normal(size=(layers, layers))


def features_of(matrix, feature):
    return matrix if feature == "rows" else matrix.sum(axis=1)[:, None]


def loss_of(values, segments):
    return sum(((values[a : b + 1] - values[a : b + 1].mean(axis=0)) ** 2).sum() for a, b in segments)


def all_segmentations(layers, k):
    for cuts in combinations(range(1, layers), k - 1):
        yield [(a, b - 1) for a, b in pairwise((0, *cuts, layers))]


@FEATURES
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 7, 9])
def test_segmentation_equals_brute_force(layers, feature):
    for seed in range(5):
        matrix = random_matrix(layers, seed)
        values = features_of(matrix, feature)
        table = segmentation_table(matrix, feature)
        for k in range(1, layers + 1):
            best = min(all_segmentations(layers, k), key=lambda segments: loss_of(values, segments))
            assert table.segments(k) == best
            assert table.losses[k - 1] == pytest.approx(loss_of(values, best), rel=1e-9, abs=1e-9)


@FEATURES
@pytest.mark.parametrize("layers", [17, 28])
def test_segmentation_equals_ruptures(layers, feature):
    for seed in range(3):
        matrix = random_matrix(layers, seed)
        search = ruptures.Dynp(model="l2", jump=1, min_size=1).fit(features_of(matrix, feature))
        for k in (2, 3, 5, 8):
            ends = [0, *search.predict(n_bkps=k - 1)]
            assert fisher_segmentation(matrix, k, feature) == [(a, b - 1) for a, b in pairwise(ends)]


@FEATURES
def test_one_table_gives_every_k(feature):
    matrix = random_matrix(28, 0)
    table = segmentation_table(matrix, feature)
    for k in range(1, 29):
        segments = table.segments(k)
        assert segments == fisher_segmentation(matrix, k, feature)
        assert [i for first, last in segments for i in range(first, last + 1)] == list(range(28))
        assert len(segments) == k


@FEATURES
def test_the_loss_never_rises_with_more_segments(feature):
    losses = segmentation_table(random_matrix(28, 1), feature).losses
    assert (np.diff(losses) <= 0).all()
    assert losses[0] > 0
    assert losses[-1] == 0


def test_blocks_of_similar_layers_are_found():
    matrix = np.kron(np.diag([1.0, 0.8, 0.9]), np.ones((4, 4)))
    assert fisher_segmentation(matrix, 3) == [(0, 3), (4, 7), (8, 11)]


def test_a_large_common_value_does_not_hide_the_differences():
    matrix = random_matrix(12, 3)
    assert fisher_segmentation(matrix + 1e6, 4) == fisher_segmentation(matrix, 4)


@pytest.mark.parametrize(
    ("losses", "share", "k"),
    [
        ([10, 4, 3.5, 3.45, 3.4], 0.05, 3),  # the drop of 0.5 is just 5 % of 10
        ([10, 4, 3.5, 3.45, 3.4], 0.051, 2),
        ([10, 9.9, 9.8], 0.05, 1),
        ([10, 9.9, 4], 0.05, 3),  # a useless cut before a useful one
        ([1, 1e-9, 0], 0.05, 2),  # the last cut removes all of the loss, which is noise
        ([0, 0, 0], 0.05, 1),
        ([3], 0.05, 1),
    ],
)
def test_k_is_the_last_cut_that_lowers_the_loss_by_the_share(losses, share, k):
    assert choose_k(losses, share) == k


@pytest.mark.parametrize(
    ("matrix", "k", "feature", "message"),
    [
        (np.eye(4), 0, "rows", "k=0 segments can't be made of 4 layers: k must be 1 to 4"),
        (np.eye(4), 5, "rows", "k=5 segments can't be made of 4 layers"),
        (np.eye(4), -1, "rows", "k=-1"),
        (np.eye(4), 2.0, "rows", r"k=2\.0 is wrong: it must be a whole number"),
        (np.eye(4), "2", "rows", "k='2' is wrong"),
        (np.ones((3, 4)), 2, "rows", r"square, but this one has the shape \(3, 4\)"),
        (np.ones(4), 2, "rows", "square"),
        (np.ones((0, 0)), 1, "rows", "square"),
        (np.full((3, 3), np.nan), 2, "rows", "not finite"),
        (np.eye(4), 2, "columns", "feature='columns' is unknown"),
    ],
)
def test_impossible_segmentations_are_refused(matrix, k, feature, message):
    with pytest.raises(SegmentationError, match=message):
        fisher_segmentation(matrix, k, feature)


def test_a_table_knows_how_many_segments_it_was_made_for():
    table = segmentation_table(random_matrix(8, 0), max_k=3)
    assert table.segments(3) == segmentation_table(random_matrix(8, 0)).segments(3)
    with pytest.raises(SegmentationError, match=r"^k=5 is not in this table, which was made for up to 3 segments$"):
        table.segments(5)
    with pytest.raises(SegmentationError, match="k=9 segments can't be made of 8 layers: k must be 1 to 8"):
        table.segments(9)


@pytest.mark.parametrize("layers", [1, 2, 4, 7, 9])
def test_any_diameters_are_cut_as_by_brute_force(layers):
    for seed in range(8):
        generator = np.random.default_rng(seed)
        diameters = generator.random((layers, layers))
        diameters[generator.random((layers, layers)) < seed / 10] = np.inf
        table = table_of(diameters)
        for k in range(1, layers + 1):
            loss, segments = min((sum(diameters[s] for s in cut), cut) for cut in all_segmentations(layers, k))
            assert table.losses[k - 1] == pytest.approx(loss)
            if np.isfinite(loss):
                assert table.segments(k) == segments
            else:
                with pytest.raises(SegmentationError, match=f"^k={k} segments can't be made of these {layers} layers"):
                    table.segments(k)


def test_the_error_says_which_numbers_of_segments_are_possible():
    diameters = np.full((4, 4), np.inf)
    diameters[0, 1] = diameters[2, 3] = diameters[2, 2] = diameters[3, 3] = 1
    with pytest.raises(SegmentationError, match=r"as each cut has a segment that is not allowed: k can be 2, 3$"):
        table_of(diameters).segments(4)
    with pytest.raises(SegmentationError, match=r"k can be no number$"):
        table_of(np.full((3, 3), np.inf)).segments(2)


def test_diameters_that_are_no_numbers_are_refused():
    with pytest.raises(SegmentationError, match=r"must be a square array, but this one has the shape \(2, 3\)"):
        table_of(np.ones((2, 3)))
    with pytest.raises(SegmentationError, match="a diameter is NaN"):
        table_of(np.full((3, 3), np.nan))
