"""Random geometry for training images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.config import InputConfig

# Uniform numbers that one image's transform is made from.
_NUM_DRAWS = 6

# Of a crop's sides to each other.
_LARGEST_ASPECT = 4 / 3

# Keeps the random stream of crops apart from that of the rest.
_CROP_STREAM = 2

# Of test-time views: whatever the run's seed, they are the same.
_VIEWS_SEED = 0


@keras.saving.register_keras_serializable(package="flowers17_tfdata")
class RandomAffine(keras.layers.Layer):
    """Rotates, shifts, zooms and flips images by one resampling each.

    The layer owns the distribution: `draw` makes the transforms, as a pure
    function of (seed, epoch, index). `call` applies them with Keras ops
    (bilinear; beyond the border, the nearest pixel), on an accelerator;
    `examples.warp_affine` does so on the host, to within rounding.

    With c the image centre, output pixel p shows input point
    `c + R diag(zx, zy) F (p - c) + t`, R the rotation, z the zoom, F the
    flip, t the shift: the composition of Keras's ImageDataGenerator. A crop is
    one more zoom and shift: of relative area A and aspect ratio r it has sides
    sqrt(A r) and sqrt(A / r) (at most 1) and lies anywhere within the image (C.
    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6).

    Args:
      rotation: largest angle, degrees, in either direction.
      shift: largest shift, as a fraction of height and of width.
      zoom: zx and zy are uniform in [1 - zoom, 1 + zoom].
      horizontal_flip: whether half of the images are mirrored.
      crop: least area of a crop, as a fraction of the image's; areas are
        uniform in [crop, 1], aspect ratios log-uniform in [3/4, 4/3]. 1: no
        crops.
      **kwargs: of `keras.layers.Layer`. Computes in float32 whatever the
        dtype policy: half precision would move pixels.

    Input shape: `(batch, height, width, channels)`, any range and dtype.
    Output shape: the same, float32, within the input's range.
    """

    def __init__(
        self,
        rotation: float = 30.0,
        shift: float = 0.1,
        zoom: float = 0.2,
        horizontal_flip: bool = True,
        crop: float = 1.0,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.rotation = rotation
        self.shift = shift
        self.zoom = zoom
        self.horizontal_flip = horizontal_flip
        self.crop = crop

    def draw(
        self,
        seed: int | tf.Tensor,
        epoch: int | tf.Tensor,
        num_examples: int,
        height: int,
        width: int,
    ) -> tf.Tensor:
        """Draws an epoch's transforms, one an example.

        All at once: drawing them by the batch, each from a seed of its own,
        took longer than resampling the images.

        Args:
          seed: of the run.
          epoch: scalar.
          num_examples: of the data set.
          height: of the images, pixels.
          width: of the images, pixels.

        Returns:
          float32 `[num_examples, 8]`: rows `a0 a1 a2 b0 b1 b2 0 0` that map
          output (x, y) to input (a0 x + a1 y + a2, b0 x + b1 y + b2), pixels.
        """
        uniform = _draw_uniform([num_examples, _NUM_DRAWS], seed, epoch)
        angle, dx, dy, zx, zy, flip = tf.unstack(uniform, axis=1)
        angle = (2 * angle - 1) * self.rotation * math.pi / 180
        dx = (2 * dx - 1) * self.shift * width
        dy = (2 * dy - 1) * self.shift * height
        zx = 1 + (2 * zx - 1) * self.zoom
        zy = 1 + (2 * zy - 1) * self.zoom
        if self.crop < 1:
            width_scale, height_scale, x, y = self._draw_crops(
                seed, epoch, num_examples
            )
            zx, zy = zx * width_scale, zy * height_scale
            dx += x * (1 - width_scale) / 2 * width
            dy += y * (1 - height_scale) / 2 * height
        if self.horizontal_flip:
            zx = tf.where(flip < 0.5, -zx, zx)
        return affine_rows(angle, dx, dy, zx, zy, height, width)

    def _draw_crops(self, seed, epoch, num_examples):
        """Returns sides and positions (in [-1, 1]) of crops, `[n]` each."""
        uniform = _draw_uniform([num_examples, 4], seed, epoch, _CROP_STREAM)
        area, aspect, x, y = tf.unstack(uniform, axis=1)
        area = self.crop + (1 - self.crop) * area
        aspect = tf.exp((2 * aspect - 1) * math.log(_LARGEST_ASPECT))
        return (
            tf.minimum(tf.sqrt(area * aspect), 1.0),
            tf.minimum(tf.sqrt(area / aspect), 1.0),
            2 * x - 1,
            2 * y - 1,
        )

    def call(self, images, transforms):
        return keras.ops.image.affine_transform(
            keras.ops.cast(images, "float32"),
            transforms,
            interpolation="bilinear",
            fill_mode="nearest",
            data_format="channels_last",
        )

    def compute_output_shape(self, images_shape, transforms_shape=None):
        return images_shape

    def get_config(self):
        return super().get_config() | {
            "rotation": self.rotation,
            "shift": self.shift,
            "zoom": self.zoom,
            "horizontal_flip": self.horizontal_flip,
            "crop": self.crop,
        }


def _draw_uniform(shape, seed, epoch, stream: int = 0) -> tf.Tensor:
    """Returns float32 in [0, 1), a function of seed, epoch and stream."""
    return tf.random.stateless_uniform(
        shape,
        tf.stack(
            [
                tf.cast(seed, tf.int64) + stream * 2**32,
                tf.cast(epoch, tf.int64),
            ]
        ),
    )


def affine_rows(
    angle: tf.Tensor,
    dx: tf.Tensor,
    dy: tf.Tensor,
    zx: tf.Tensor,
    zy: tf.Tensor,
    height: int,
    width: int,
) -> tf.Tensor:
    """Composes output-to-input maps about the image centre.

    Args:
      angle: radians, `[batch]` float32, as are all that follow.
      dx: shift of the sampled point along x, pixels.
      dy: likewise along y.
      zx: scale along x; below 1 magnifies, negative mirrors.
      zy: scale along y.
      height: of the images, pixels.
      width: of the images, pixels.

    Returns:
      float32 `[batch, 8]`; see `RandomAffine.draw`.
    """
    cos, sin = tf.cos(angle), tf.sin(angle)
    a0, a1, b0, b1 = cos * zx, -sin * zy, sin * zx, cos * zy
    cx, cy = (width - 1) / 2, (height - 1) / 2
    a2 = cx + dx - a0 * cx - a1 * cy
    b2 = cy + dy - b0 * cx - b1 * cy
    zero = tf.zeros_like(angle)
    return tf.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1)


def before_resize(transforms: tf.Tensor, scale: float) -> tf.Tensor:
    """Makes maps from points of an image maps from points of its reduction.

    One resampling then transforms and reduces.

    Args:
      transforms: float32 `[batch, 8]`, see `draw_transforms`.
      scale: size of the image over that of its reduction.

    Returns:
      float32 of the same shape.
    """
    a0, a1, a2, b0, b1, b2, *rest = tf.unstack(transforms, axis=1)
    # Pixel centres lie at half-integers when sizes are scaled.
    offset = (scale - 1) / 2
    a2 += (a0 + a1) * offset
    b2 += (b0 + b1) * offset
    a0, a1, b0, b1 = (c * scale for c in (a0, a1, b0, b1))
    return tf.stack([a0, a1, a2, b0, b1, b2, *rest], axis=1)


def draw_transforms(
    config: InputConfig,
    seed: int | tf.Tensor,
    epoch: int | tf.Tensor,
    num_examples: int,
) -> tf.Tensor:
    """Draws an epoch's transforms, one row an example.

    Args:
      config: image sizes and ranges.
      seed: of the run.
      epoch: scalar.
      num_examples: of the data set.

    Returns:
      float32 `[num_examples, 8]`, see `RandomAffine.draw`: from points of an
      image of `train_image_size` to points of one of `image_size`.
    """
    size = config.image_size
    rows = make_affine(config).draw(seed, epoch, num_examples, size, size)
    return before_resize(rows, size / config.train_image_size)


def num_fixed_views(config: InputConfig) -> int:
    """Returns how many views are not random: the image, its mirror image."""
    return 2 if config.horizontal_flip else 1


def num_views(config: InputConfig, wanted: int) -> int:
    """Returns how many of the wanted views of an image there are."""
    if config.augmentation == "none":
        return min(wanted, num_fixed_views(config))
    return wanted


def view_transforms(
    config: InputConfig, seed: int, view: int, num_examples: int
) -> tf.Tensor | None:
    """Returns the transforms that show one view of every image.

    Args:
      config: image sizes and ranges.
      seed: of the run.
      view: 0: the images as they are; then, with `horizontal_flip`, their
        mirror images; then random ones, each image's its own.
      num_examples: of the split.

    Returns:
      float32 `[num_examples, 8]`; None for view 0.
    """
    if view == 0:
        return None
    if view < num_fixed_views(config):
        return tf.tile(_mirror(config), [num_examples, 1])
    return draw_transforms(config, seed, view, num_examples)


def _mirror(config: InputConfig) -> tf.Tensor:
    """Returns the transform to the mirror image, float32 `[1, 8]`."""
    size = config.image_size
    row = tf.constant([[-1.0, 0, size - 1, 0, 1, 0, 0, 0]])
    return before_resize(row, size / config.train_image_size)


def draw_views(config: InputConfig, num_views: int) -> np.ndarray:
    """Returns the views that test-time augmentation averages over.

    The image as it is; then, with `horizontal_flip`, its mirror image; then
    random ones from the training's distribution, at `image_size`. The same for
    every image, so that a prediction does not depend on the other images, and
    for every run.

    Args:
      config: image sizes and ranges.
      num_views: at least 1.

    Returns:
      float32 `[num_views - 1, 8]`, see `draw_transforms`: all but the first.
    """
    config = dataclasses.replace(config, train_scale=1.0)
    rows = [draw_transforms(config, _VIEWS_SEED, 0, num_views)]
    if config.horizontal_flip:
        rows.insert(0, _mirror(config))
    return tf.concat(rows, axis=0).numpy()[: num_views - 1]


def make_affine(config: InputConfig) -> RandomAffine:
    """Returns the layer with the ranges of the flags."""
    return RandomAffine(
        config.rotation,
        config.shift,
        config.zoom,
        config.horizontal_flip,
        config.crop,
    )
