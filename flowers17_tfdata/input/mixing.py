"""CutMix: a box of each training image shows another one of its batch."""

from __future__ import annotations

import tensorflow as tf


def cutmix(
    images: tf.Tensor, targets: tf.Tensor, probability: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box of another image into some images, and mixes the targets.

    S. Yun et al., "CutMix", ICCV 2019, section 3: the box's relative area is
    uniform in [0, 1], its centre anywhere, and what of it lies within the image
    is the other's share of the target. Each image has its own box; its partner
    is the one as far from the batch's end as it is from its start.

    Args:
      images: `[batch, height, width, channels]`, any range and dtype.
      targets: float32 `[batch, num_classes]`.
      probability: of an image to get a box, in [0, 1].
      seed: int `[2]`: the same one, the same boxes.

    Returns:
      Images and targets, of the same shapes and dtypes.
    """
    batch, height, width = images.shape[:3]
    uniform = tf.random.stateless_uniform([batch, 4], seed)
    area, centre_y, centre_x, chance = tf.unstack(uniform, axis=1)
    side = tf.where(chance < probability, tf.sqrt(area), 0.0)
    rows = _interval(centre_y, side, height)
    columns = _interval(centre_x, side, width)
    box = rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]
    share = tf.reduce_mean(tf.cast(box, tf.float32), axis=(1, 2))[:, tf.newaxis]
    mixed = tf.where(box[..., tf.newaxis], tf.reverse(images, [0]), images)
    return mixed, targets + share * (tf.reverse(targets, [0]) - targets)


def _interval(centre: tf.Tensor, side: tf.Tensor, size: int) -> tf.Tensor:
    """Returns which pixels lie within a box along an axis: bool `[b, size]`."""
    position = (tf.range(size, dtype=tf.float32) + 0.5) / size
    distance = tf.abs(position[tf.newaxis] - centre[:, tf.newaxis])
    return distance < side[:, tf.newaxis] / 2
