"""Tests of dHash near-duplicates: what is found, what is not, the groups."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowers17_tfdata.data import near_duplicates, scan
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.errors import UserError


def _picture(seed: int) -> np.ndarray:
    """A smooth random picture, uint8 `[120, 160, 3]`."""
    coarse = np.random.default_rng(seed).integers(40, 216, [7, 9, 3], np.uint8)
    return cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)


def _jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def _thumbnail(bits: np.ndarray) -> np.ndarray:
    """A thumbnail `[16, 17]` whose hash is `bits`, `[16, 16]`."""
    steps = np.where(bits, 3.0, -3.0)
    start = np.full([16, 1], 128.0)
    return np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1)


def _random_bits(num_images: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, [num_images, 16, 16]).astype(bool)


def _flip(bits: np.ndarray, count: int) -> np.ndarray:
    flipped = bits.copy().ravel()
    flipped[:: 256 // count][:count] ^= True
    return flipped.reshape(bits.shape)


def _positions(pairs) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in pairs]


def test_planted_duplicates_are_found_and_nothing_else():
    a, b, c, d = (_picture(seed) for seed in range(4))
    encoded = [
        _jpeg(a),
        _jpeg(b),
        _jpeg(a),
        _jpeg(c),
        _jpeg(cv2.resize(b, (200, 150)), quality=40),
        _jpeg(d),
        _jpeg(c[:, ::-1]),
        _jpeg(cv2.convertScaleAbs(d, alpha=0.6, beta=20)),
        *(_jpeg(_picture(seed)) for seed in range(10, 22)),
    ]
    pairs = near_duplicates.find_near_duplicates(
        scan.scan_images(encoded).thumbnails
    )
    assert _positions(pairs) == [(0, 2), (1, 4), (3, 6), (5, 7)]
    assert pairs[0].distance == 0
    assert all(0 <= pair.distance <= 32 for pair in pairs)


def test_positions_count_the_blank_images_in_front():
    blank = np.zeros([16, 17])
    x, y = (_thumbnail(bits) for bits in _random_bits(2))
    pairs = near_duplicates.find_near_duplicates(
        np.stack([blank, x, blank, y, blank, x])
    )
    assert pairs == [(1, 5, 0)]


def _blank_images() -> np.ndarray:
    levels = np.array([0, 0, 255, 255, 128, 128], np.float32)
    blank = np.broadcast_to(levels[:, None, None], [6, 16, 17]).copy()
    # Sensor noise below one gray level is still blank.
    blank[1:] += np.random.default_rng(0).uniform(0, 0.5, [5, 16, 17])
    return blank


def test_blank_images_are_not_duplicates_of_each_other():
    picture = _thumbnail(_random_bits(1)[0])[None]
    thumbnails = np.concatenate([_blank_images(), picture])
    assert near_duplicates.find_near_duplicates(thumbnails) == []


def test_nothing_but_blank_images():
    assert near_duplicates.find_near_duplicates(_blank_images()) == []


@pytest.mark.parametrize(("flipped", "found"), [(32, True), (33, False)])
def test_largest_distance_of_a_pair(flipped, found):
    bits = _random_bits(1)[0]
    thumbnails = np.stack([_thumbnail(bits), _thumbnail(_flip(bits, flipped))])
    pairs = near_duplicates.find_near_duplicates(thumbnails)
    assert pairs == ([(0, 1, flipped)] if found else [])


def test_the_nearer_of_plain_and_mirrored_counts():
    x = _thumbnail(_random_bits(1)[0])
    symmetric = np.concatenate([x[:, :9], x[:, 7::-1]], axis=1)
    bits = near_duplicates.difference_hashes(symmetric[None])[0]
    # Nearly symmetric: it is near its mirror image, and nearer to itself.
    picture = _thumbnail(_flip(bits.reshape(16, 16), 5))
    for other in (picture, picture[:, ::-1]):
        pairs = near_duplicates.find_near_duplicates(np.stack([picture, other]))
        assert pairs == [(0, 1, 0)]


def test_a_mirror_symmetric_image_is_no_pair_with_itself():
    x = _thumbnail(_random_bits(1)[0])
    symmetric = np.concatenate([x[:, :9], x[:, 7::-1]], axis=1)
    assert near_duplicates.find_near_duplicates(symmetric[None]) == []


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (3, 4), (7, 5), (64, 64)]
)
def test_comparing_in_blocks_changes_nothing(monkeypatch, rows, columns):
    bits = _random_bits(20)
    bits[17] = bits[0]
    bits[9] = _flip(bits[8], 5)
    thumbnails = np.stack([_thumbnail(b) for b in bits])
    thumbnails[19] = thumbnails[4][:, ::-1]
    monkeypatch.setattr(near_duplicates, "_ROWS", rows)
    monkeypatch.setattr(near_duplicates, "_COLUMNS", columns)
    pairs = near_duplicates.find_near_duplicates(thumbnails)
    assert pairs == [(0, 17, 0), (4, 19, 0), (8, 9, 5)]


def test_hash_is_the_sign_of_rightward_brightness_steps():
    bits = _random_bits(3)
    thumbnails = np.stack([_thumbnail(b) for b in bits])
    np.testing.assert_array_equal(
        near_duplicates.difference_hashes(thumbnails), bits.reshape(3, 256)
    )


def test_of_a_crowd_of_equal_images_only_neighbours_are_paired():
    bits = _random_bits(3)
    thumbnails = [_thumbnail(bits[0]), *[_thumbnail(bits[1])] * 1000]
    thumbnails += [_thumbnail(_flip(bits[1], 5)), _thumbnail(bits[2])]
    pairs = near_duplicates.find_near_duplicates(np.stack(thumbnails))
    assert len(pairs) == 1000
    groups = splits.group_pairs(pairs, 1003)
    # One group of the thousand and the one beside it; the others are alone.
    assert sorted(np.bincount(groups).tolist()) == [1, 1, 1001]


def test_too_many_pairs_are_one_line(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MOST_PAIRS", 10)
    rng = np.random.default_rng(0)
    scene = rng.uniform(0, 255, [16, 17])
    frames = scene + rng.normal(0, 2, [20, 16, 17])
    with pytest.raises(UserError, match="keep some of each series"):
        near_duplicates.find_near_duplicates(frames)
