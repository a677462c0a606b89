"""EXIF orientation inside a TensorFlow graph: what `decode.upright` does.

A served model sees the bytes that a camera wrote, and no Python.
CIPA DC-008 (Exif 2.32): section 4.5 for the JPEG segments, 4.6 for the tags.
"""

from __future__ import annotations

import tensorflow as tf

# The orientation stands near the start; of a large file no more is looked at.
_HEADER_BYTES = 2**20
# Hostile files may hold millions of empty segments; cameras write about ten.
_MAX_SEGMENTS = 256

_EXIF = 0xE1
_START_OF_SCAN = 0xDA
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_ENTRY_BYTES = 12


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the orientation that a camera noted.

    Args:
      encoded: scalar string, anything.

    Returns:
      int64 scalar in [1, 8]; 1 (as stored) where the bytes are no JPEG, hold
      no EXIF, or EXIF that is cut short or malformed. Never an error.
    """
    data = tf.io.decode_raw(
        tf.strings.substr(encoded, 0, _HEADER_BYTES), tf.uint8
    )
    data = tf.cast(data, tf.int64)
    tiff = _find_tiff(data)
    value = _find_tag(tiff, _is_little_endian(tiff))
    is_known = (value >= 1) & (value <= 8)
    return tf.where(is_known, value, tf.ones_like(value))


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns stored pixels as they were seen.

    Args:
      image: `[height, width, channels]`.
      orientation: int64 scalar in [1, 8].

    Returns:
      The turned image; 5 to 8 exchange height and width.
    """

    def turned():
        swapped = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
        up_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        left_right = tf.reduce_any(orientation == [2, 3, 6, 7])
        return tf.raw_ops.Reverse(
            tensor=tf.transpose(image, swapped),
            dims=tf.stack([up_down, left_right, False]),
        )

    # Most are upright: no copy of theirs.
    result = tf.cond(orientation == 1, lambda: image, turned)
    return tf.ensure_shape(result, [None, None, image.shape[-1]])


def _find_tiff(data: tf.Tensor) -> tf.Tensor:
    """Returns the TIFF structure in a JPEG's EXIF segment, or nothing of it.

    Args:
      data: int64 `[bytes]`, the start of a file.
    """
    is_jpeg = _number(data, 0, 3, False) == 0xFFD8FF

    def is_other_segment(start, marker, _):
        # At a pixel's data the headers are over.
        more = (marker != _EXIF) & (marker != _START_OF_SCAN)
        return is_jpeg & more & (_number(data, start, 1, False) == 0xFF)

    def next_segment(start, marker, end):
        # A marker may follow any number of fill bytes 0xFF.
        following = _number(data, end, 2, False)
        is_fill = following == 0xFFFF
        length = _number(data, end + 2, 2, False)
        new_end = end + tf.where(is_fill, tf.constant(1, tf.int64), 2 + length)
        marker = tf.where(is_fill, marker, following & 0xFF)
        # An APP1 segment may hold XMP instead.
        is_exif = _number(data, end + 4, 6, False) == int.from_bytes(
            b"Exif\0\0", "big"
        )
        is_other = (marker == _EXIF) & ~is_exif
        marker = tf.where(is_other, tf.zeros_like(marker), marker)
        return end, marker, new_end

    two, none = tf.constant(2, tf.int64), tf.constant(0, tf.int64)
    start, marker, end = tf.while_loop(
        is_other_segment,
        next_segment,
        # Before the first marker stands nothing but the file's own two bytes.
        (two, none, two),
        maximum_iterations=_MAX_SEGMENTS,
    )
    is_marker = _number(data, start, 1, False) == 0xFF
    found = is_jpeg & is_marker & (marker == _EXIF)
    return data[tf.where(found, start + 10, end) : end]


def _is_little_endian(tiff: tf.Tensor) -> tf.Tensor:
    return _number(tiff, 0, 2, False) == int.from_bytes(b"II", "big")


def _find_tag(tiff: tf.Tensor, is_little: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of a TIFF structure.

    Args:
      tiff: int64 `[bytes]`.
      is_little: bool scalar, the order of its bytes.

    Returns:
      int64 scalar; 0: there is none.
    """
    is_tiff = tf.where(
        is_little,
        _number(tiff, 0, 4, False) == int.from_bytes(b"II*\0", "big"),
        _number(tiff, 0, 4, False) == int.from_bytes(b"MM\0*", "big"),
    )
    first = _number(tiff, 4, 4, is_little)
    # Only whole entries: what is cut short says nothing.
    room = tf.maximum(tf.size(tiff, tf.int64) - first - 2, 0) // _ENTRY_BYTES
    count = tf.minimum(_number(tiff, first, 2, is_little), room)
    entries = first + 2 + _ENTRY_BYTES * tf.range(count)
    is_orientation = (
        is_tiff
        & (_number(tiff, entries, 2, is_little) == _ORIENTATION_TAG)
        & (_number(tiff, entries + 2, 2, is_little) == _SHORT)
        & (_number(tiff, entries + 4, 4, is_little) == 1)
    )
    values = _number(tiff, entries + 8, 2, is_little)
    # The first, should there be several.
    return tf.concat([tf.boolean_mask(values, is_orientation), [0]], 0)[0]


def _number(data: tf.Tensor, start, size: int, is_little) -> tf.Tensor:
    """Reads unsigned numbers; bytes beyond the end are 0.

    Args:
      data: int64 `[bytes]`.
      start: int64 position or positions, not negative.
      size: of a number, bytes.
      is_little: bool, the order of its bytes.

    Returns:
      int64, in the shape of `start`.
    """
    start = tf.convert_to_tensor(start, tf.int64)
    positions = start[..., tf.newaxis] + tf.range(size, dtype=tf.int64)
    end = tf.size(data, tf.int64)
    padded = tf.concat([data, [0]], 0)
    found = tf.gather(padded, tf.minimum(positions, end))
    found = tf.where(is_little, found, tf.reverse(found, [-1]))
    return tf.reduce_sum(found * [256**k for k in range(size)], axis=-1)
