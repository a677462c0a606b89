"""CutMix: pixels and targets are mixed alike, by seed."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from flowers17_tfdata.input import mixing

SIZE = 20


def _mix(batch=64, probability=1.0, seed=(1, 2), dtype=tf.float32):
    """Mixes images whose every pixel is their index."""
    index = np.arange(batch)
    images = np.broadcast_to(index[:, None, None, None], [batch, SIZE, SIZE, 3])
    images, targets = mixing.cutmix(
        tf.cast(images, dtype),
        tf.one_hot(index, batch),
        probability,
        tf.constant(seed, tf.int64),
    )
    return images.numpy(), targets.numpy()


def test_targets_are_the_shares_of_the_pixels():
    images, targets = _mix()
    for k, (image, target) in enumerate(zip(images, targets, strict=True)):
        partner = len(images) - 1 - k
        assert set(np.unique(image)) <= {k, partner}
        share = (image[..., 0] == partner).mean()
        np.testing.assert_allclose(target[partner], share, atol=1e-6)
        np.testing.assert_allclose(target[k], 1 - share, atol=1e-6)


def test_what_is_pasted_is_a_box_at_its_own_place():
    images, _ = _mix()
    areas = []
    for k, image in enumerate(images):
        pasted = image[..., 0] != k
        np.testing.assert_array_equal(image[..., 1] != k, pasted)
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, np.outer(rows, columns))
        for line in (rows, columns):
            # One stretch.
            assert np.abs(np.diff(line.astype(int))).sum() <= 2
        areas.append(pasted.mean())
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_a_pixel_shows_the_partners_at_the_same_place():
    rng = np.random.default_rng(0)
    images = rng.normal(size=[8, SIZE, SIZE, 3]).astype(np.float32)
    seed = tf.constant([3, 4], tf.int64)
    mixed, _ = mixing.cutmix(tf.constant(images), tf.eye(8), 1.0, seed)
    mixed = mixed.numpy()
    own, other = mixed == images, mixed == images[::-1]
    assert np.all(own | other) and other.any() and own.any()


def test_only_the_share_of_images_that_probability_says():
    counts = {}
    for probability in (0.0, 0.5, 1.0):
        _, targets = _mix(400, probability)
        counts[probability] = (targets.max(axis=1) < 1).mean()
    assert counts[0.0] == 0
    assert 0.4 < counts[0.5] < 0.6
    assert counts[1.0] > 0.9


def test_the_seed_decides():
    first, again = _mix(seed=(1, 2)), _mix(seed=(1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in ((1, 3), (2, 2)):
        assert np.any(_mix(seed=other)[0] != first[0])


def test_half_precision_stays():
    images, targets = _mix(dtype=tf.bfloat16)
    assert images.dtype == tf.bfloat16 and targets.dtype == np.float32
