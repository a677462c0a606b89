"""EXIF orientation inside a TensorFlow graph, as `decode.upright` reads it.

A served model gets the bytes that a camera wrote, and has no Python.
CIPA DC-008 (Exif 2.32): section 4.5 for the JPEG segments, 4.6 for the tags.
PNG specification, third edition: section 11.3.3.2 for the chunk eXIf.
"""

from __future__ import annotations

import tensorflow as tf

from flowers17_tfdata.data.image_formats import PNG_MAGIC

# EXIF is near the start of a file: the rest of a large file isn't read.
_HEADER_BYTES = 2**20
# Hostile files may contain millions of empty segments; cameras write about ten.
_MAX_SEGMENTS = 256

# The pixels of a PNG may be divided into many chunks.
_MAX_CHUNKS = 2**16

_JPEG = 0xFFD8FF
_END_CHUNK = int.from_bytes(b"IEND", "big")
_EXIF_CHUNK = int.from_bytes(b"eXIf", "big")
_APP1 = 0xFFE1
_START_OF_SCAN = 0xFFDA
_FILL_BYTES = 0xFFFF
_EXIF = int.from_bytes(b"Exif\0\0", "big")
_LITTLE_ENDIAN = int.from_bytes(b"II*\0", "big")
_BIG_ENDIAN = int.from_bytes(b"MM\0*", "big")
# The orientation's directory entry: tag 0x0112, type 3 (SHORT) or 4 (LONG),
# count 1.
_TAG, _SHORT, _LONG, _COUNT = 0x0112, 3, 4, 1
_ENTRY_BYTES = 12


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the orientation that a camera recorded.

    Args:
      encoded: scalar string; any bytes.

    Returns:
      int64 scalar in [1, 8]; 1 (as stored) if the bytes aren't a JPEG or PNG,
      or their EXIF is missing, cut short or malformed. Never raises an error.
    """
    tiff = tf.cond(
        tf.strings.substr(encoded, 0, len(PNG_MAGIC)) == PNG_MAGIC,
        lambda: _tiff_of_png(encoded),
        lambda: _tiff_of_jpeg(_bytes(encoded, 0, _HEADER_BYTES)),
    )
    byte_order = _number(tiff, 0, 4)
    is_tiff = (byte_order == _LITTLE_ENDIAN) | (byte_order == _BIG_ENDIAN)

    def number(start, size):
        return _number(tiff, start, size, byte_order == _LITTLE_ENDIAN)

    directory = number(4, 4)
    # Whole entries only: the last one may be cut short.
    room = tf.maximum(tf.size(tiff, tf.int64) - directory - 2, 0)
    count = tf.minimum(number(directory, 2), room // _ENTRY_BYTES)
    entries = directory + 2 + _ENTRY_BYTES * tf.range(count)
    kinds = number(entries + 2, 2)
    is_orientation = (
        is_tiff
        & (number(entries, 2) == _TAG)
        & ((kinds == _SHORT) | (kinds == _LONG))
        & (number(entries + 4, 4) == _COUNT)
    )
    values = tf.where(
        kinds == _SHORT, number(entries + 8, 2), number(entries + 8, 4)
    )
    values = tf.boolean_mask(values, is_orientation)
    # The first entry counts if there are several; 0 if there is none.
    value = tf.concat([values, [0]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, tf.ones_like(value))


def _bytes(encoded: tf.Tensor, start, length) -> tf.Tensor:
    """Returns a part of a scalar string, int64 `[bytes]`."""
    # TensorFlow fails beyond the end.
    start = tf.minimum(tf.cast(start, tf.int64), _length(encoded))
    part = tf.strings.substr(encoded, start, tf.cast(length, tf.int64))
    return tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int64)


def _length(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _tiff_of_png(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the TIFF structure in a PNG's eXIf chunk, or no bytes."""

    def length_of(start):
        return _number(_bytes(encoded, start, 4), 0, 4)

    def is_other(start):
        name = _number(_bytes(encoded, start + 4, 4), 0, 4)
        is_last = (name == _EXIF_CHUNK) | (name == _END_CHUNK)
        return (start + 8 <= _length(encoded)) & ~is_last

    (start,) = tf.while_loop(
        is_other,
        # The length, the name, the content and a checksum.
        lambda start: (start + 12 + length_of(start),),
        (tf.constant(len(PNG_MAGIC), tf.int64),),
        maximum_iterations=_MAX_CHUNKS,
    )
    # Nothing, if this is the end.
    return _bytes(encoded, start + 8, length_of(start))


def _tiff_of_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Returns the TIFF structure in a JPEG's EXIF segment, or no bytes.

    Args:
      data: int64 `[bytes]`, the start of a file.
    """

    def is_exif(start):
        # An APP1 segment may contain XMP instead.
        is_app1 = _number(data, start, 2) == _APP1
        return is_app1 & (_number(data, start + 4, 6) == _EXIF)

    def is_other(start):
        is_marker = _number(data, start, 1) == 0xFF
        # The headers end where the pixels' data begin.
        is_header = is_marker & (_number(data, start, 2) != _START_OF_SCAN)
        return is_header & ~is_exif(start)

    def next_start(start):
        # Any number of fill bytes 0xFF may precede a marker.
        is_fill = _number(data, start, 2) == _FILL_BYTES
        length = 2 + _number(data, start + 2, 2)
        return start + tf.where(is_fill, tf.ones_like(start), length)

    (start,) = tf.while_loop(
        is_other,
        lambda start: (next_start(start),),
        (tf.constant(2, tf.int64),),
        maximum_iterations=_MAX_SEGMENTS,
    )
    end = next_start(start)
    found = (_number(data, 0, 3) == _JPEG) & is_exif(start)
    return data[tf.where(found, start + 10, end) : end]


def _number(
    data: tf.Tensor, start, size: int, is_little_endian=False
) -> tf.Tensor:
    """Reads unsigned numbers; bytes beyond the end are 0.

    Args:
      data: int64 `[bytes]`.
      start: int64 position or positions, not negative.
      size: bytes per number.
      is_little_endian: bool, the byte order.

    Returns:
      int64, in the shape of `start`.
    """
    start = tf.convert_to_tensor(start, tf.int64)
    positions = start[..., tf.newaxis] + tf.range(size, dtype=tf.int64)
    padded = tf.concat([data, [0]], 0)
    found = tf.gather(padded, tf.minimum(positions, tf.size(data, tf.int64)))
    found = tf.where(is_little_endian, found, tf.reverse(found, [-1]))
    return tf.reduce_sum(found * [256**k for k in range(size)], axis=-1)


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns stored pixels upright.

    Args:
      image: `[height, width, channels]`.
      orientation: int64 scalar in [1, 8].

    Returns:
      The turned image; 5 to 8 swap height and width.
    """

    def turned():
        swapped = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
        up_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        left_right = tf.reduce_any(orientation == [2, 3, 6, 7])
        return tf.raw_ops.Reverse(
            tensor=tf.transpose(image, swapped),
            dims=tf.stack([up_down, left_right, False]),
        )

    # Most images are upright and need no copy.
    result = tf.cond(orientation == 1, lambda: image, turned)
    return tf.ensure_shape(result, [None, None, image.shape[-1]])
