"""Random geometry: drawn as transforms, applied on the device or the host."""

from __future__ import annotations

import math
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig

# Batches are already spread over threads; OpenCV's threads would only contend.
cv2.setNumThreads(1)

# The number of uniform numbers that determine one image's transform.
_NUM_DRAWS = 6

# The largest ratio of a crop's sides.
_LARGEST_ASPECT = 4 / 3

# Makes the random stream of crops independent of the other draws.
_CROP_STREAM = 2

# The transform that leaves images as they are; see `RandomAffine.draw`.
IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)


@keras.saving.register_keras_serializable(package="flowers17_tfdata")
class RandomAffine(keras.layers.Layer):
    """Rotates, shifts, zooms, crops and flips images by one resampling.

    The layer owns the distribution: `draw` returns the transforms, a pure
    function of (seed, epoch, index). `call` applies them with Keras ops, for an
    accelerator; `warp_affine` applies them on the host and gives the same
    pixels to within rounding. Both interpolate bilinearly and repeat the
    nearest pixel beyond the border.

    With c the image centre, output pixel p shows input point
    `c + R diag(zx, zy) F (p - c) + t`, where R is the rotation, z the zoom, F
    the flip and t the shift: the composition of Keras's ImageDataGenerator. A
    crop is one more zoom and shift: with relative area A and aspect ratio r it
    has sides sqrt(A r) and sqrt(A / r), at most 1, and a uniform position in
    the image (C. Szegedy et al., "Going deeper with convolutions", CVPR 2015,
    section 6).

    Args:
      rotation: the largest angle in either direction, degrees.
      shift: the largest shift, as a fraction of height and of width.
      zoom: zx and zy are uniform in [1 - zoom, 1 + zoom].
      horizontal_flip: whether to mirror half of the images.
      crop: the smallest area of a crop, as a fraction of the image's. Areas are
        uniform in [crop, 1], aspect ratios log-uniform in [3/4, 4/3]. 1: no
        crops.
      **kwargs: arguments of `keras.layers.Layer`. The layer computes in
        float32 whatever the dtype policy: half precision would move pixels.

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
        """Draws the transforms of an epoch, one per example.

        It draws all of them at once: a seed of its own for each example took
        longer than resampling the image.

        Args:
          seed: the seed of the run.
          epoch: the epoch, a scalar.
          num_examples: the number of examples.
          height: the height of the images, pixels.
          width: the width of the images, pixels.

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
        """Returns the sides and the positions (in [-1, 1]) of crops, `[n]`."""
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
    """Returns float32 in [0, 1), determined by seed, epoch and stream."""
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
    """Composes transforms about the image centre.

    Args:
      angle: float32 `[batch]`, like the following four; radians.
      dx: the shift of the sampled point along x, pixels.
      dy: the shift of the sampled point along y, pixels.
      zx: the scale along x; below 1 magnifies, below 0 mirrors.
      zy: the scale along y.
      height: the height of the images, pixels.
      width: the width of the images, pixels.

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
    """Composes transforms with a reduction of their output.

    One resampling then transforms and reduces the image.

    Args:
      transforms: float32 `[batch, 8]`, see `RandomAffine.draw`.
      scale: the size of the output over that of the reduced output.

    Returns:
      float32 `[batch, 8]`, from pixels of the reduced output to input pixels.
    """
    a0, a1, a2, b0, b1, b2, *rest = tf.unstack(transforms, axis=1)
    # Scaling keeps the edges, and pixel centres lie half a pixel from them.
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
    """Draws the transforms of an epoch, one per example.

    Args:
      config: the options of the input pipeline.
      seed: the seed of the run.
      epoch: the epoch, a scalar.
      num_examples: the number of examples.

    Returns:
      float32 `[num_examples, 8]`, from pixels of an image of `train_image_size`
      to pixels of an image of `image_size`; see `RandomAffine.draw`.
    """
    size = config.image_size
    rows = make_affine(config).draw(seed, epoch, num_examples, size, size)
    return before_resize(rows, size / config.train_image_size)


def num_fixed_views(config: InputConfig) -> int:
    """Returns the number of views that are not drawn at random.

    These are the image and, with `horizontal_flip`, its mirror image.
    """
    return 2 if config.horizontal_flip else 1


def num_views(config: InputConfig, wanted: int) -> int:
    """Returns the number of views of an image, at most `wanted`."""
    if config.augmentation == "none":
        return min(wanted, num_fixed_views(config))
    return wanted


def view_transforms(
    config: InputConfig, seed: int, view: int, num_examples: int
) -> tf.Tensor | None:
    """Returns the transforms for one view of every image.

    Args:
      config: the options of the input pipeline.
      seed: the seed of the run.
      view: 0 is the image itself; with `horizontal_flip`, 1 is its mirror
        image; the others are drawn at random for each image.
      num_examples: the number of examples.

    Returns:
      float32 `[num_examples, 8]`; None for view 0.
    """
    if view == 0:
        return None
    if view < num_fixed_views(config):
        return tf.tile(_mirror(config), [num_examples, 1])
    return draw_transforms(config, seed, view, num_examples)


def _mirror(config: InputConfig) -> tf.Tensor:
    """Returns the transform of the mirror image, float32 `[1, 8]`."""
    size = config.image_size
    row = tf.constant([[-1.0, 0, size - 1, 0, 1, 0, 0, 0]])
    return before_resize(row, size / config.train_image_size)


def make_affine(config: InputConfig) -> RandomAffine:
    """Returns the layer for the options of the input pipeline."""
    if config.augmentation == "none":
        return RandomAffine(0, 0, 0, horizontal_flip=False)
    return RandomAffine(
        config.rotation,
        config.shift,
        config.zoom,
        config.horizontal_flip,
        config.crop,
    )


def warp_affine(
    image: np.ndarray, transform: np.ndarray, out: np.ndarray
) -> None:
    """Applies a transform on the host: `RandomAffine.call` by OpenCV.

    Bilinear, in steps of 1/32 pixel; the nearest pixel beyond the border.

    Args:
      image: uint8 `[height, width, 3]`.
      transform: float32 `[8]`, see `RandomAffine.draw`.
      out: uint8 `[out_height, out_width, 3]`, which is written.
    """
    cv2.warpAffine(
        image,
        transform[:6].reshape(2, 3),
        out.shape[1::-1],
        dst=out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def after_resize(
    transform: np.ndarray, scale_x: float, scale_y: float
) -> np.ndarray:
    """Changes the input of a transform from a resized image to the original.

    Args:
      transform: float32 `[8]`, see `RandomAffine.draw`.
      scale_x: the width of the original over that of the resized image.
      scale_y: the height of the original over that of the resized image.

    Returns:
      float32 `[8]`, from output pixels to pixels of the original.
    """
    rows = transform[:6].reshape(2, 3).copy()
    # Scaling keeps the edges, and pixel centres lie half a pixel from them.
    rows[:, 2] += 0.5
    rows *= np.array([[scale_x], [scale_y]], np.float32)
    rows[:, 2] -= 0.5
    return np.append(rows, np.zeros(2, np.float32))
