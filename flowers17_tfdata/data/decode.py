"""The one decoder: training, evaluation and the audit see the same pixels."""

from __future__ import annotations

import concurrent.futures
import io
import os
import struct
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.errors import one_line

# Of malformed metadata and of large images it warns, without saying which.
warnings.filterwarnings("ignore", module=r"PIL\.")

_JPEG_MAGIC = b"\xff\xd8\xff"
# How the names of files that it decodes end, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")

_FORMATS = ("JPEG", "PNG", "GIF", "BMP")

# Thumbnails are made of images reduced to no less than this, pixels.
_THUMBNAIL_SOURCE = 256

# Tag, type (SHORT) and count of a directory's entry.
_ORIENTATION_ENTRY = [0x0112, 3, 1]

# What turns the stored pixels as they were seen, by EXIF's orientation:
# CIPA DC-008 (Exif 2.32), tag 0x0112.
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

    TensorFlow's decoders ignore the orientation that cameras note in a JPEG's
    EXIF, and allocate whatever size a header declares. So this is for every
    image from outside, before they see it. It reads the header alone, unless
    the image is to be turned.

    Args:
      encoded: JPEG, PNG, BMP or GIF.

    Returns:
      `encoded` itself, or the turned image as a PNG.

    Raises:
      ValueError: it is none of these, or declares more pixels than Pillow
        opens (twice `PIL.Image.MAX_IMAGE_PIXELS`: 179 million).
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
    # Kept for this run alone: speed before size.
    turned.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _orientation(image: Image.Image) -> int | None:
    """Returns the orientation in a JPEG's EXIF; None: there is none.

    Not by Pillow's `getexif`, which takes other types of the tag and what XMP
    says: an exported model, which reads the same bytes in a graph
    (`export.exif`), must turn the same pictures. A malformed directory says
    nothing, as viewers have it.
    """
    # Of a PNG, Pillow would decode all of it to look for a late EXIF chunk.
    if image.format == "PNG":
        return None
    tiff = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
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
        # Cut short.
        pass
    return None


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
    thumbnails = np.zeros([len(encoded), 16, 17], np.float32)
    sizes = np.zeros([len(encoded), 2], np.int32)
    errors = {}
    # TensorFlow decodes without holding Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        results = threads.map(_thumbnail_or_error, encoded)
        for position, (small, size, error) in enumerate(results):
            if error:
                errors[position] = error
            else:
                thumbnails[position], sizes[position] = small, size
    return Thumbnails(thumbnails, sizes, errors)


def _thumbnail_or_error(data: bytes):
    """Returns thumbnail, size and '', or None, None and what is wrong."""
    try:
        with tf.device("CPU:0"):
            data = upright(data)
            size, ratio = None, 1
            if data.startswith(_JPEG_MAGIC):
                size = tf.io.extract_jpeg_shape(data)[:2].numpy()
                # All of 12 megapixels for 272 gray levels takes five times as
                # long. Truncation shows all the same.
                ratio = reduction(*size, _THUMBNAIL_SOURCE)
            image = tf.constant(decode_reduced(data, ratio))
            gray = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
            small = tf.image.resize(gray, [16, 17], method="area")
        size = image.shape[:2] if size is None else size
        return small[..., 0].numpy(), size, ""
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        return None, None, decoder_message(error)


def decoder_message(error: ValueError | tf.errors.OpError) -> str:
    """Returns what `upright` or the decoder said, on one line."""
    # Between the op's name and its suffix, which say nothing to a user.
    message = str(error).rpartition("}} ")[2].split(" [Op:")[0]
    return one_line(message, 160)
