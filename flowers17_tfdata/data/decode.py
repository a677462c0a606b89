"""The one decoder: training, evaluation and the audit see the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import one_line

_JPEG_MAGIC = b"\xff\xd8\xff"


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP or the first frame of a GIF.

    Args:
      encoded: scalar string.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def decode_and_resize(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes and resizes (antialiased bilinear, aspect ratio not kept).

    Args:
      encoded: scalar string.
      image_size: height and width of the result, pixels.

    Returns:
      uint8 `[image_size, image_size, 3]` in [0, 255].
    """
    return resize(decode_image(encoded), image_size)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes (antialiased bilinear, aspect ratio not kept).

    Args:
      image: uint8 `[height, width, 3]`.
      image_size: height and width of the result, pixels.

    Returns:
      uint8 `[image_size, image_size, 3]`.
    """
    image = tf.image.resize(image, [image_size, image_size], antialias=True)
    # Antialiasing keeps within the input's range but for rounding.
    image = tf.clip_by_value(tf.round(image), 0.0, 255.0)
    return tf.ensure_shape(
        tf.cast(image, tf.uint8), [image_size, image_size, 3]
    )


def resize_host(image: np.ndarray, image_size: int) -> np.ndarray:
    """Does what `resize` does, at once and on the CPU."""
    with tf.device("CPU:0"):
        return resize(tf.constant(image), image_size).numpy()


def reduction(height: int, width: int, image_size: int) -> int:
    """Returns by how much to reduce an image before it is resampled once.

    Bilinear resampling to less than half of a size skips pixels.

    Args:
      height: of the image, pixels.
      width: of the image, pixels.
      image_size: height and width that it is to be resampled to.

    Returns:
      The largest of 1, 2, 4, 8 that leaves at least `image_size`.
    """
    side = min(height, width)
    return next((r for r in (8, 4, 2) if side // r >= image_size), 1)


def decode_reduced(encoded: bytes, ratio: int) -> np.ndarray:
    """Decodes at a fraction of the size.

    Args:
      encoded: JPEG, PNG, BMP or GIF.
      ratio: 1, 2, 4 or 8. For a JPEG the decoder's own scaled inverse
        transform does it, which is also faster; else the pixels' mean.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB; read-only.
    """
    # Where there is a GPU, the pixels must not take a turn through it.
    with tf.device("CPU:0"):
        if encoded.startswith(_JPEG_MAGIC):
            image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)
        else:
            image = decode_image(encoded)
            if ratio > 1:
                image = tf.image.resize(
                    image,
                    [image.shape[0] // ratio, image.shape[1] // ratio],
                    method="area",
                )
                image = tf.cast(tf.round(image), tf.uint8)
    # Not .numpy(): it copies, and holds up the other threads meanwhile.
    return np.asarray(memoryview(image))


class Thumbnails(NamedTuple):
    """What a pass over encoded images found.

    Attributes:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255]; zeros where
        the image can't be decoded.
      sizes: int32 `[n, 2]`, height and width, pixels; zeros likewise.
      errors: `{position: one line}` of the images that can't be decoded.
    """

    thumbnails: np.ndarray
    sizes: np.ndarray
    errors: dict[int, str]


def make_thumbnails(encoded: Sequence[bytes]) -> Thumbnails:
    """Decodes every image to the thumbnail that hashing works on."""

    def thumbnail(data):
        image = decode_image(data)
        gray = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
        small = tf.image.resize(gray, [16, 17], method="area")
        return small[..., 0], tf.shape(image)[:2]

    thumbnails = np.zeros([len(encoded), 16, 17], np.float32)
    sizes = np.zeros([len(encoded), 2], np.int32)
    errors = {}
    for position, data in enumerate(encoded):
        try:
            small, size = thumbnail(tf.constant(data))
        except tf.errors.InvalidArgumentError as error:
            errors[position] = decoder_message(error)
            continue
        thumbnails[position], sizes[position] = small, size
    return Thumbnails(thumbnails, sizes, errors)


def decoder_message(error: tf.errors.OpError) -> str:
    """Returns what the decoder said, on one line."""
    # Between the op's name and its suffix, which say nothing to a user.
    message = error.message.rpartition("}} ")[2].split(" [Op:")[0]
    return one_line(message, 160)
