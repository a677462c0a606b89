"""The one decoder: training, evaluation and the audit see the same pixels."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.errors import one_line

# Pillow warns about malformed metadata and large images without naming them.
warnings.filterwarnings("ignore", module=r"PIL\.")

JPEG_MAGIC = b"\xff\xd8\xff"

# Name suffixes of the files that can be decoded, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")

_FORMATS = ("JPEG", "PNG", "GIF", "BMP")

# The tag, the type (SHORT) and the count in its EXIF directory entry.
_ORIENTATION_ENTRY = [0x0112, 3, 1]

# How to turn the stored pixels upright, by EXIF orientation: CIPA DC-008
# (Exif 2.32), tag 0x0112.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(encoded: bytes) -> bytes:
    """Returns an image that decodes to what a viewer shows.

    TensorFlow's decoders ignore the EXIF orientation of a JPEG and allocate
    whatever size a header declares. So every image from outside must pass
    through here first. This reads only the header, unless it has to turn the
    image.

    Args:
      encoded: JPEG, PNG, BMP or GIF.

    Returns:
      `encoded` itself, or the turned image as a PNG.

    Raises:
      ValueError: the bytes are in none of these formats, or declare more pixels
        than Pillow opens (twice `PIL.Image.MAX_IMAGE_PIXELS`: 179 million).
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            turn = _TURNS.get(_orientation(image))
    except Image.DecompressionBombError as error:
        raise ValueError(one_line(error, 160)) from error
    except OSError as error:
        raise ValueError("no header of a JPEG, PNG, GIF or BMP") from error
    if turn is None:
        return encoded
    turned = Image.fromarray(decode_reduced(encoded, 1)).transpose(turn)
    stream = io.BytesIO()
    # Kept only for this run, so speed matters more than size.
    turned.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in a JPEG's EXIF; 0 if it has none.

    Pillow's `getexif` also accepts other types of the tag, and XMP. An exported
    model reads the same bytes in a graph (`exif_in_graph`), and must turn the
    same pictures. Like viewers, this ignores a malformed directory.
    """
    # For a PNG, Pillow would decode the whole image to find a late EXIF chunk.
    if image.format == "PNG":
        return 0
    tiff = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for k in range(count):
            *entry, value = struct.unpack_from(
                f"{order}HHIHxx", tiff, first + 2 + 12 * k
            )
            if entry == _ORIENTATION_ENTRY:
                return value
    except struct.error:
        # The directory is truncated.
        pass
    return 0


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
    """Decodes (see `decode_image`) and resizes (see `resize`)."""
    return resize(decode_image(encoded), image_size)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes (antialiased bilinear, aspect ratio not kept).

    Args:
      image: uint8 `[height, width, 3]` in [0, 255].
      image_size: height and width of the result, pixels.

    Returns:
      uint8 `[image_size, image_size, 3]` in [0, 255].
    """
    image = tf.image.resize(image, [image_size, image_size], antialias=True)
    # Antialiasing stays in the input's range, except for rounding.
    image = tf.clip_by_value(tf.round(image), 0.0, 255.0)
    image = tf.cast(image, tf.uint8)
    return tf.ensure_shape(image, [image_size, image_size, 3])


def resize_host(image: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes like `resize`, eagerly and on the CPU."""
    with tf.device("CPU:0"):
        return resize(tf.constant(image), image_size).numpy()


def reduction(height: int, width: int, image_size: int) -> int:
    """Returns the factor by which to reduce an image before resampling it.

    Bilinear resampling to less than half the size skips pixels.

    Args:
      height: the image's height, pixels.
      width: the image's width, pixels.
      image_size: height and width after resampling, pixels.

    Returns:
      The largest of 1, 2, 4, 8 that leaves at least `image_size`.
    """
    side = min(height, width)
    return next((r for r in (8, 4, 2) if side // r >= image_size), 1)


def decode_reduced(encoded: bytes, ratio: int) -> np.ndarray:
    """Decodes at a fraction of the size.

    Args:
      encoded: JPEG, PNG, BMP or GIF.
      ratio: 1, 2, 4 or 8. A JPEG is reduced by the decoder's own scaled inverse
        transform, which is also faster; other images by averaging pixels.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB; read-only.
    """
    # Otherwise the pixels would pass through the GPU, if there is one.
    with tf.device("CPU:0"):
        if encoded.startswith(JPEG_MAGIC):
            image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)
        else:
            image = decode_image(encoded)
            if ratio > 1:
                size = [side // ratio for side in image.shape[:2]]
                image = tf.image.resize(image, size, method="area")
                image = tf.cast(tf.round(image), tf.uint8)
    # .numpy() would copy, and hold up the other threads meanwhile.
    return np.asarray(memoryview(image))


def decoder_message(error: ValueError | tf.errors.OpError) -> str:
    """Returns the message of `upright` or of the decoder, on one line."""
    # TensorFlow's names of the op around the message mean nothing to a user.
    message = str(error).rpartition("}} ")[2].split(" [Op:")[0]
    return one_line(message, 160)
