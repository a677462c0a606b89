"""Augmentation: exact pixels, reproducible draws, views."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.input import augmentation

IMAGE = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)[..., None]  # 1x2x3x1


def _rows(angle=0.0, dx=0.0, dy=0.0, zx=1.0, zy=1.0, height=2, width=3):
    values = [tf.constant([v], tf.float32) for v in (angle, dx, dy, zx, zy)]
    return augmentation.affine_rows(*values, height, width)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({}, [[1, 2, 3], [4, 5, 6]]),
        ({"zx": -1.0}, [[3, 2, 1], [6, 5, 4]]),
        # The sampled point moves right; beyond the border, the nearest pixel.
        ({"dx": 1.0}, [[2, 3, 3], [5, 6, 6]]),
        ({"dy": 0.5}, [[2.5, 3.5, 4.5], [4, 5, 6]]),
        ({"zx": 0.5}, [[1.5, 2, 2.5], [4.5, 5, 5.5]]),
        ({"angle": np.pi}, [[6, 5, 4], [3, 2, 1]]),
    ],
)
def test_literal_pixels(transform, expected):
    layer = augmentation.RandomAffine()
    result = layer(IMAGE, _rows(**transform))
    np.testing.assert_allclose(result[0, ..., 0], expected, atol=1e-4)


def test_quarter_turn_on_a_square():
    image = np.array([[1, 2], [3, 4]], np.float32)[None, ..., None]
    layer = augmentation.RandomAffine()
    result = layer(image, _rows(angle=np.pi / 2, height=2, width=2))
    np.testing.assert_allclose(result[0, ..., 0], [[2, 4], [1, 3]], atol=1e-4)


def _draw(layer, num_examples, seed=1, epoch=2):
    epoch = tf.constant(epoch, tf.int64)
    return layer.draw(seed, epoch, num_examples, 9, 9).numpy()


def test_draws_are_a_pure_function_of_seed_epoch_index():
    layer = augmentation.RandomAffine()
    rows = _draw(layer, 8)
    np.testing.assert_array_equal(rows, _draw(layer, 8))
    for other in (
        _draw(layer, 8, seed=2),
        _draw(layer, 8, epoch=3),
        # (seed, epoch) is no sum: 1 + 2 = 2 + 1.
        _draw(layer, 8, seed=2, epoch=1),
        # Each example has its own draw.
        np.roll(rows, 1, axis=0),
    ):
        assert np.all(np.abs(rows - other).max(axis=1) > 0)


def test_draws_are_the_same_in_a_dataset():
    layer = augmentation.RandomAffine()
    mapped = tf.data.Dataset.range(3).map(lambda e: layer.draw(1, e, 8, 9, 9))
    for epoch, rows in enumerate(mapped):
        np.testing.assert_allclose(
            rows, _draw(layer, 8, epoch=epoch), rtol=1e-5, atol=1e-5
        )


def test_draws_fill_the_ranges_and_no_more():
    layer = augmentation.RandomAffine(rotation=30, shift=0.1, zoom=0.2)
    rows = _draw(layer, 2000)
    a0, a1, a2, b0, b1, b2 = rows[:, :6].T
    zx, zy = np.hypot(a0, b0), np.hypot(a1, b1)
    angle = np.degrees(np.arctan2(-a1, b1))
    dx, dy = a2 + 4 * a0 + 4 * a1 - 4, b2 + 4 * b0 + 4 * b1 - 4
    for value, low, high in (
        (zx, 0.8, 1.2),
        (zy, 0.8, 1.2),
        (angle, -30, 30),
        (dx, -0.9, 0.9),
        (dy, -0.9, 0.9),
    ):
        margin = 0.01 * (high - low)
        assert low - 1e-4 <= value.min() < low + margin
        assert high - margin < value.max() <= high + 1e-4
    flipped = np.mean(a0 * b1 - a1 * b0 < 0)
    assert 0.45 < flipped < 0.55


def _make_augment(num_examples):
    """Returns `augment(images, seed, epoch, indices)`."""
    layer = augmentation.make_affine(InputConfig())

    def augment(images, seed, epoch, indices):
        height, width = images.shape[1:3]
        rows = layer.draw(seed, epoch, num_examples, height, width)
        return layer(images, tf.gather(rows, indices))

    return augment


def test_reproducible_in_a_parallel_map_and_equal_to_eager():
    augment = _make_augment(24)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, [6, 4, 16, 16, 3], np.uint8))
    indices = tf.reshape(tf.range(24, dtype=tf.int64), [6, 4])
    epoch = tf.constant(0, tf.int64)

    def mapped(parallel):
        dataset = tf.data.Dataset.from_tensor_slices((images, indices)).map(
            lambda x, i: augment(
                tf.ensure_shape(x, [4, 16, 16, 3]), 7, epoch, i
            ),
            num_parallel_calls=parallel,
        )
        return np.stack(list(dataset.as_numpy_iterator()))

    eager = np.stack(
        [augment(x, 7, epoch, i) for x, i in zip(images, indices, strict=True)]
    )
    parallel = mapped(4)
    np.testing.assert_array_equal(parallel, mapped(4))
    np.testing.assert_array_equal(parallel, mapped(None))
    # Graph and eager kernels may round differently.
    np.testing.assert_allclose(parallel, eager, atol=1e-2)
    assert np.abs(eager - images.numpy()).max() > 10
    assert eager.min() >= 0 and eager.max() <= 255.001


def test_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    images = tf.fill([1, 8, 8, 3], tf.constant(129, tf.uint8))
    index = tf.constant([0], tf.int64)
    result = _make_augment(1)(images, 0, tf.constant(0, tf.int64), index)
    assert result.dtype == tf.float32
    # bfloat16 has 8 bits of mantissa: 129 would become 128 or 130.
    np.testing.assert_allclose(result, 129.0, atol=1e-3)


def test_config_round_trip():
    layer = augmentation.RandomAffine(rotation=7, shift=0.3, zoom=0.4)
    clone = augmentation.RandomAffine.from_config(layer.get_config())
    np.testing.assert_array_equal(_draw(layer, 3), _draw(clone, 3))


def test_layer_has_the_ranges_of_the_flags():
    config = InputConfig(rotation=7, shift=0.3, zoom=0.4, horizontal_flip=False)
    layer = augmentation.make_affine(config)
    expected = augmentation.RandomAffine(7, 0.3, 0.4, False)
    np.testing.assert_array_equal(_draw(layer, 3), _draw(expected, 3))
    rows = _draw(layer, 100)
    assert np.all(rows[:, 0] * rows[:, 4] - rows[:, 1] * rows[:, 3] > 0)


def test_crops_have_the_areas_and_aspects_and_lie_within_the_image():
    layer = augmentation.RandomAffine(0, 0, 0, False, crop=0.3)
    rows = layer.draw(1, tf.constant(2, tf.int64), 4000, 200, 100).numpy()
    a0, a1, a2, b0, b1, b2 = rows[:, :6].T
    np.testing.assert_array_equal([a1, b0], 0)
    area, aspect = a0 * b1, a0 / b1
    assert 0.3 <= area.min() < 0.32 and area.max() > 0.97
    assert 0.75 <= aspect.min() < 0.77 and 1.3 < aspect.max() <= 4 / 3 + 1e-5
    # A side can't be longer than the image's.
    assert max(a0.max(), b1.max()) <= 1
    # The borders of the first and the last visible pixel.
    left, right = a2 - a0 / 2, a2 + a0 * 99.5
    top, bottom = b2 - b1 / 2, b2 + b1 * 199.5
    assert min(left.min(), top.min()) > -0.51
    assert right.max() < 99.51 and bottom.max() < 199.51
    # Crops are everywhere: some touch each border.
    assert left.min() < 0.5 and right.max() > 98.5


def test_crops_leave_the_other_draws_as_they_are():
    ranges = {"rotation": 30, "shift": 0, "zoom": 0}
    whole = _draw(augmentation.RandomAffine(**ranges), 50)
    crops = _draw(augmentation.RandomAffine(**ranges, crop=0.5), 50)
    again = _draw(augmentation.RandomAffine(**ranges, crop=0.5), 50, epoch=3)

    def angle(rows):
        flip = np.sign(np.linalg.det(rows[:, [[0, 1], [3, 4]]]))
        return np.arctan2(rows[:, 3] * flip, rows[:, 0] * flip)

    np.testing.assert_allclose(angle(crops), angle(whole), atol=1e-5)
    assert np.all(np.abs(crops - again).max(axis=1) > 0)


def test_before_resize_shows_the_points_between():
    row = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    image = np.repeat(row, 6, axis=1)
    identity = tf.constant([[1, 0, 0, 0, 1, 0, 0, 0]], tf.float32)
    transforms = augmentation.before_resize(identity, 2.0)
    reduced = augmentation.RandomAffine()(image, transforms)[0, :3, :3, 0]
    # Each of the three new pixels lies between two of the six.
    np.testing.assert_allclose(reduced, [[0.5, 2.5, 4.5]] * 3, atol=1e-5)
    mirrored = tf.constant([[-1, 0, 5, 0, 1, 0, 0, 0]], tf.float32)
    transforms = augmentation.before_resize(mirrored, 2.0)
    reduced = augmentation.RandomAffine()(image, transforms)[0, :3, :3, 0]
    np.testing.assert_allclose(reduced, [[4.5, 2.5, 0.5]] * 3, atol=1e-5)


@pytest.mark.parametrize("train_scale", [1.0, 0.5])
def test_views_of_a_split_are_the_image_its_mirror_and_random_ones(train_scale):
    config = InputConfig(image_size=8, train_scale=train_scale)
    images = np.random.default_rng(0).uniform(0, 255, [3, 8, 8, 1])
    images = images.astype(np.float32)
    assert augmentation.view_transforms(config, 1, 0, 3) is None
    size = config.train_image_size
    mirrored = augmentation.RandomAffine()(
        images, augmentation.view_transforms(config, 1, 1, 3)
    )[:, :size, :size]
    expected = images[:, :, ::-1]
    if size < 8:
        # The mean of two by two pixels.
        expected = expected.reshape(3, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(mirrored, expected, atol=1e-3)
    rows = augmentation.view_transforms(config, 1, 2, 3).numpy()
    again = augmentation.view_transforms(config, 1, 2, 3).numpy()
    np.testing.assert_array_equal(rows, again)
    for other in (
        augmentation.view_transforms(config, 1, 3, 3).numpy(),
        augmentation.view_transforms(config, 2, 2, 3).numpy(),
        np.roll(rows, 1, axis=0),
    ):
        assert np.all(np.abs(rows - other).max(axis=1) > 0)


def test_what_must_not_be_mirrored_has_no_such_view():
    config = InputConfig(image_size=8, horizontal_flip=False)
    assert augmentation.num_fixed_views(config) == 1
    for view in (1, 2, 3):
        rows = augmentation.view_transforms(config, 0, view, 50).numpy()
        assert np.all(np.linalg.det(rows[:, [[0, 1], [3, 4]]]) > 0)


@pytest.mark.parametrize(
    ("changes", "wanted", "expected"),
    [
        ({}, 5, 5),
        ({"augmentation": "none"}, 5, 2),
        ({"augmentation": "none"}, 1, 1),
        ({"augmentation": "none", "horizontal_flip": False}, 2, 1),
    ],
)
def test_without_augmentation_there_are_no_random_views(
    changes, wanted, expected
):
    config = InputConfig(**changes)
    assert augmentation.num_views(config, wanted) == expected
