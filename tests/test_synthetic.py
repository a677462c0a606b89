"""Tests of the drawn stand-in for Flowers-17."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from flowers17_tfdata.data.oxford_flowers17 import (
    flower_kinds,
    painting,
    synthetic,
)

NUM_CLASSES = 17
# Spread over the class, so that neighbours and distant indices both occur.
_SAMPLED_INDICES = (0, 1, 27, 53, 79)


@pytest.fixture(scope="module")
def sample() -> dict[tuple[int, int], np.ndarray]:
    """Returns a few drawings of every class by (class_position, index)."""
    return {
        (position, index): synthetic.draw_flower(position, index)
        for position in range(NUM_CLASSES)
        for index in _SAMPLED_INDICES
    }


def _dhash(image: np.ndarray) -> np.ndarray:
    """Returns the 256 bits of a 16x16 difference hash as float [256]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
    return (small[:, 1:] > small[:, :-1]).ravel().astype(np.float64)


def _hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the distances [n, m] between hashes [n, 256] and [m, 256]."""
    return first @ (1.0 - second.T) + (1.0 - first) @ second.T


def test_drawings_are_uint8_rgb_of_photo_like_size(sample) -> None:
    for image in sample.values():
        assert image.dtype == np.uint8
        height, width, channels = image.shape
        assert channels == 3
        assert 200 <= min(height, width) <= 260
        assert 0.75 <= width / height <= 1.33
    assert len({image.shape for image in sample.values()}) > 20
    assert any(i.shape[0] > i.shape[1] for i in sample.values())
    assert any(i.shape[0] < i.shape[1] for i in sample.values())


def test_drawings_use_the_range_of_values(sample) -> None:
    for key, image in sample.items():
        low, high = np.percentile(image, (1, 99))
        assert high - low > 60, key
        # A flower in light that leaves nothing black or burnt out throughout.
        assert 20 < image.mean() < 235, key


def test_drawing_again_in_another_order_gives_the_same_pixels(sample) -> None:
    for key in reversed(list(sample)[::6]):
        np.testing.assert_array_equal(
            synthetic.draw_flower(*key), sample[key], err_msg=str(key)
        )


def test_global_random_state_is_neither_read_nor_advanced(sample) -> None:
    np.random.seed(1)
    cv2.setRNGSeed(1)
    before = np.random.get_state()[1].copy()
    image = synthetic.draw_flower(7, 1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(image, sample[7, 1])


def test_number_of_opencv_threads_does_not_matter(sample) -> None:
    threads = cv2.getNumThreads()
    try:
        for number in (1, 3):
            cv2.setNumThreads(number)
            np.testing.assert_array_equal(
                synthetic.draw_flower(4, 27), sample[4, 27]
            )
    finally:
        cv2.setNumThreads(threads)


def test_different_seeds_draw_different_images(sample) -> None:
    for position in range(0, NUM_CLASSES, 4):
        other = synthetic.draw_flower(position, 0, seed=1)
        distance = _hamming(
            _dhash(other)[None], _dhash(sample[position, 0])[None]
        )
        assert distance.item() > 40


def test_classes_differ_at_the_same_index(sample) -> None:
    for index in _SAMPLED_INDICES:
        thumbnails = [
            cv2.resize(
                sample[position, index],
                (32, 32),
                interpolation=cv2.INTER_AREA,
            ).astype(np.float64)
            for position in range(NUM_CLASSES)
        ]
        for first, second in itertools.combinations(thumbnails, 2):
            assert np.abs(first - second).mean() > 5.0


def test_every_class_has_traits_of_its_own() -> None:
    # Drawn without any variation but the random generator's, the flowers
    # themselves must differ, not just their backgrounds.
    pose = painting.Pose(48.0 + 48.0j, 44.0, 0.0, 0.0, 0.0, 0.0)
    flowers = []
    for kind in flower_kinds.KINDS:
        canvas = np.zeros((96, 96, 3), np.uint8)
        rng = np.random.default_rng(0)
        painting.Flower(canvas, rng, kind, pose).paint(np.ones(3), shades=6)
        flowers.append(canvas.astype(np.float64))
    assert len(flowers) == NUM_CLASSES
    for first, second in itertools.combinations(flowers, 2):
        assert np.abs(first - second).mean() > 8.0


def test_no_two_drawings_are_near_duplicates(sample) -> None:
    images = list(sample.values())
    hashes = np.array([_dhash(image) for image in images])
    mirrored = np.array([_dhash(image[:, ::-1]) for image in images])
    distances = _hamming(hashes, hashes)
    np.fill_diagonal(distances, 256)
    assert distances.min() > 40
    # An image and its own mirror image count too: neither may be symmetric.
    assert _hamming(hashes, mirrored).min() > 40


def test_first_files_are_jpegs_of_the_first_drawings() -> None:
    files = list(itertools.islice(synthetic.iter_synthetic_images(), 4))
    assert [name for name, _ in files] == [
        "image_0001.jpg",
        "image_0002.jpg",
        "image_0003.jpg",
        "image_0004.jpg",
    ]
    for index, (_, data) in enumerate(files):
        assert isinstance(data, bytes)
        assert data.startswith(b"\xff\xd8\xff")
        drawn = synthetic.draw_flower(0, index)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[
            ..., ::-1
        ]
        assert decoded.shape == drawn.shape
        # Swapped channels would be far off; JPEG's own loss is small.
        error = np.abs(decoded.astype(np.int32) - drawn)
        assert error.mean() < 6.0


def test_encoding_again_gives_the_same_bytes() -> None:
    first, second = (
        list(itertools.islice(synthetic.iter_synthetic_images(seed=5), 3))
        for _ in range(2)
    )
    assert first == second


def test_all_files_are_numbered_by_class_and_index(monkeypatch) -> None:
    # Drawing all 1360 images would take far longer than the test is worth.
    drawn = []

    def fake_draw(class_position: int, index: int, seed: int) -> np.ndarray:
        drawn.append((class_position, index, seed))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(synthetic, "draw_flower", fake_draw)
    names = [name for name, _ in synthetic.iter_synthetic_images(seed=3)]
    assert names == [f"image_{number:04d}.jpg" for number in range(1, 1361)]
    assert drawn == [(c, i, 3) for c in range(17) for i in range(80)]
