"""The one reader of pictures: everything sees the same pixels.

`read` decodes any file to what a viewer shows. `upright` turns it into a JPEG
or PNG that TensorFlow decodes to the same pixels. Metadata never decides about
pixels: only sizes and orientations are read from it, and what is malformed is
passed over.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.data import damage, image_formats, pillow_reader
from flowers17_tfdata.data.image_formats import JPEG_MAGIC, PNG_MAGIC
from flowers17_tfdata.errors import one_line

# The tag of the orientation in EXIF, and the formats of its types, SHORT and
# LONG.
_ORIENTATION = 0x0112
_ORIENTATION_TYPES = {3: "H", 4: "I"}

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
# Those that exchange height and width.
_SIDEWAYS = (5, 6, 7, 8)

# JPEG markers (ITU-T T.81, table B.1): the start of a frame in any process, but
# for DHT, JPG and DAC; the start of a scan; application data with EXIF.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


class Picture(NamedTuple):
    """A picture as a viewer shows it.

    Attributes:
      pixels: uint8 `[height, width, 3]` in [0, 255], RGB.
      size: height and width before any reduction, pixels.
      damage: what is damaged in the file, one line, or ''.
      file: a JPEG or PNG that TensorFlow decodes to `pixels`, before any
        reduction and without a warning; None if the file is none.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    damage: str = ""
    file: bytes | None = None

    def to_file(self) -> bytes:
        """Returns `file`, or a PNG of `pixels`."""
        return self.file or pillow_reader.to_png(Image.fromarray(self.pixels))


def upright(encoded: bytes) -> bytes:
    """Returns a JPEG or PNG that decodes to what `read` returns.

    TensorFlow's decoders ignore the EXIF orientation, misread some kinds of BMP
    and GIF, allocate whatever size a header declares, and print warnings about
    damaged files. So every image from outside must pass through here or `read`
    first.

    Returns:
      `encoded` itself, or the image as a PNG.

    Raises:
      ValueError: see `read`.
    """
    return read(encoded).to_file()


def read(encoded: bytes, least_side: int | None = None) -> Picture:
    """Decodes an image to what a viewer shows.

    Args:
      encoded: an image in one of `image_formats.FORMATS`.
      least_side: a JPEG may be reduced, to no less than this, pixels.

    Raises:
      ValueError: the bytes are in none of these formats, can't be decoded, or
        declare more than 179 million pixels.
    """
    kind = image_formats.format_of(encoded)
    if kind not in _HEADERS:
        pixels = np.asarray(pillow_reader.read(encoded))
        return Picture(pixels, pixels.shape[:2])
    (width, height), tiff = _HEADERS[kind](encoded)
    pillow_reader.check_size(width, height)
    file: bytes | None
    if kind == "JPEG":
        ratio = reduction(height, width, least_side) if least_side else 1
        pixels, damaged, is_clean = damage.decode_jpeg(encoded, ratio)
        file = encoded if is_clean else None
    else:
        file, damaged = damage.mend_png(encoded)
        try:
            pixels = decode_reduced(file, 1)
        except tf.errors.InvalidArgumentError as error:
            message = f"a damaged PNG: {decoder_message(error)}"
            raise ValueError(message) from error
    orientation = _orientation(tiff)
    if orientation in _TURNS:
        turned = Image.fromarray(pixels).transpose(_TURNS[orientation])
        pixels, file = np.asarray(turned), None
    size = (width, height) if orientation in _SIDEWAYS else (height, width)
    return Picture(pixels, size, damaged, file)


def read_exif(encoded: bytes) -> Image.Exif | None:
    """Returns the EXIF of a JPEG or PNG, or None for another format.

    Pillow would decode all pixels of a PNG to find it behind them.
    """
    read_header = _HEADERS.get(image_formats.format_of(encoded))
    if read_header is None:
        return None
    exif = Image.Exif()
    exif.load(read_header(encoded)[1])
    return exif


def _jpeg_header(encoded: bytes) -> tuple[tuple[int, int], bytes]:
    """Returns the width and height of a JPEG, and its EXIF.

    An exported model finds the EXIF in the same way (`exif_in_graph`).
    """
    size, tiff, start = (0, 0), b"", 2
    while len(encoded) >= start + 4 and encoded[start] == 0xFF:
        marker = encoded[start + 1]
        if marker == 0xFF:
            # Any number of fill bytes may precede a marker.
            start += 1
            continue
        if marker in _WITHOUT_LENGTH:
            start += 2
            continue
        if marker == _START_OF_SCAN:
            break
        end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
        content = encoded[start + 4 : end]
        if marker in _FRAMES and len(content) >= 5 and not any(size):
            bits, height, width = struct.unpack_from(">BHH", content)
            if bits != 8:
                raise ValueError(f"a JPEG of {bits} bits per sample")
            size = width, height
        if marker == _APP1 and content[:6] == b"Exif\0\0" and not tiff:
            tiff = content[6:]
        start = end
    return size if any(size) else damage.jpeg_size(encoded), tiff


def _png_header(encoded: bytes) -> tuple[tuple[int, int], bytes]:
    """Returns the width and height of a PNG, and its EXIF."""
    size, tiff, start = (0, 0), b"", len(PNG_MAGIC)
    while len(encoded) >= start + 8:
        length, name = struct.unpack_from(">I4s", encoded, start)
        content = encoded[start + 8 : start + 8 + length]
        if name == b"IHDR" and len(content) >= 8 and not any(size):
            size = struct.unpack_from(">II", content)
        if name == b"eXIf":
            tiff = content
        if name in (b"eXIf", b"IEND"):
            break
        # The length, the name, the content and a checksum.
        start += 12 + length
    return size, tiff


_HEADERS = {"JPEG": _jpeg_header, "PNG": _png_header}


def _orientation(tiff: bytes) -> int:
    """Returns the orientation in a TIFF structure; 0 if there is none.

    Pillow's `getexif` also accepts other types of the tag, and XMP. An exported
    model reads the same bytes in a graph (`exif_in_graph`), and must turn the
    same pictures. Like viewers, this ignores a malformed directory.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for k in range(count):
            # Whole entries of 12 bytes only: the last one may be cut short.
            tag, kind, number, value = struct.unpack_from(
                f"{order}HHI4s", tiff, first + 2 + 12 * k
            )
            form = _ORIENTATION_TYPES.get(kind)
            if form and (tag, number) == (_ORIENTATION, 1):
                return struct.unpack_from(order + form, value)[0]
    except struct.error:
        # The directory is truncated.
        pass
    return 0


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG, in a graph or eagerly.

    What is transparent in a PNG is composed on white.

    Args:
      encoded: scalar string.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB.
    """
    image = tf.cond(
        tf.strings.substr(encoded, 0, len(PNG_MAGIC)) == PNG_MAGIC,
        lambda: _png_on_white(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3),
    )
    image.set_shape([None, None, 3])
    return image


def _png_on_white(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_png(encoded, channels=4)
    colors, alpha = image[..., :3], image[..., 3:]
    # Byte 24 holds the bits per sample. TensorFlow 2.21 fills the alpha of an
    # opaque PNG with their greatest value: 1, 3 or 15 for less than 8 bits.
    bits = tf.io.decode_raw(tf.strings.substr(encoded, 24, 1), tf.uint8)[0]
    opaque = (
        tf.bitwise.left_shift(1, tf.cast(tf.minimum(bits, 8), tf.int32)) - 1
    )

    def composed() -> tf.Tensor:
        # At most 65,152, so that 16 bits hold it.
        color, share = tf.cast(colors, tf.uint16), tf.cast(alpha, tf.uint16)
        mixed = color * share + 255 * (255 - share)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    is_opaque = tf.reduce_all(alpha == tf.cast(opaque, tf.uint8))
    return tf.cond(is_opaque, lambda: colors, composed)


def decode_and_resize(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes (see `decode_image`) and resizes (see `resize`)."""
    return resize(decode_image(encoded), image_size)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes (antialiased bilinear, aspect ratio not kept).

    Neither a central crop nor padding was more accurate; on photographs of 16:9
    both were less (docs/recipe.md).

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
      encoded: JPEG or PNG; see `upright`.
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
    """Returns the message of `read` or of the decoder, on one line."""
    # TensorFlow's names of the op around the message mean nothing to a user.
    message = str(error).rpartition("}} ")[2].split(" [Op:")[0]
    return one_line(message, 160)
