"""Decodes pictures inside a TensorFlow graph, as `decode.upright` reads them.

A served model gets the bytes of a file, and has no Python. What TensorFlow's
decoders would misread is refused.
"""

from __future__ import annotations

import tensorflow as tf

from flowers17_tfdata.data import damage, decode
from flowers17_tfdata.data.image_formats import (
    JPEG_MAGIC,
    PLAIN_BMP,
    PLAIN_BMP_AT,
    PNG_MAGIC,
)
from flowers17_tfdata.phases.export import exif_in_graph

_REFUSAL = "this model reads JPEG, PNG, and BMP of 24 bits without compression"


def decode_upright(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a picture and turns it upright.

    Args:
      encoded: scalar string: a JPEG; a PNG, which is composed on white; or a
        BMP of 24 bits without compression. Anything else fails.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB.
    """
    is_ours = _begins(encoded, JPEG_MAGIC) | _begins(encoded, PNG_MAGIC)

    def other() -> tf.Tensor:
        is_plain = _is_plain_bmp(encoded)
        with tf.control_dependencies(
            [tf.debugging.Assert(is_plain, [_REFUSAL])]
        ):
            return tf.io.decode_bmp(tf.identity(encoded), channels=3)

    image = tf.cond(is_ours, lambda: _decode(encoded), other)
    image = tf.ensure_shape(image, [None, None, 3])
    return exif_in_graph.turn(image, exif_in_graph.orientation(encoded))


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG; a JPEG may lack its end, as for the host."""
    # Nothing counts after the end of either.
    image = decode.decode_image(tf.strings.join([encoded, damage.END_OF_JPEG]))
    is_cut = _begins(encoded, JPEG_MAGIC) & (
        tf.strings.substr(encoded, -2, 2) != damage.END_OF_JPEG
    )
    share = tf.cond(
        is_cut, lambda: damage.share_of_rows(image), lambda: tf.constant(1.0)
    )
    is_enough = tf.debugging.Assert(
        share >= damage.LEAST_SHARE, ["incomplete JPEG"]
    )
    with tf.control_dependencies([is_enough]):
        return tf.identity(image)


def _is_plain_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are a BMP of 24 bits per pixel without compression."""
    # TensorFlow fails beyond the end.
    end = PLAIN_BMP_AT + len(PLAIN_BMP)
    padded = tf.strings.join([encoded, b"\0" * end])
    found = tf.strings.substr(padded, PLAIN_BMP_AT, len(PLAIN_BMP))
    return _begins(encoded, b"BM") & (found == PLAIN_BMP)


def _begins(encoded: tf.Tensor, start: bytes) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(start)) == start
