"""Decodes pictures inside a TensorFlow graph, as `decode.upright` reads them.

A served model gets the bytes of a file, and has no Python. What TensorFlow's
decoders would misread is refused.
"""

from __future__ import annotations

import tensorflow as tf

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.export import exif_in_graph

_REFUSAL = (
    "this model reads JPEG, PNG, BMP of 24 bits, and GIF without transparency"
)
# A GIF's extension that states transparency comes before its first frame: in
# files of animations a few hundred bytes after the palette.
_GIF_HEADER_BYTES = 4096


def decode_upright(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a picture and turns it upright.

    Args:
      encoded: scalar string: a JPEG; a PNG, which is composed on white; a BMP
        of 24 bits without compression; or a GIF without transparency, of which
        the first frame counts. Anything else fails.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB.
    """
    start = tf.strings.substr(encoded, 0, 3)
    is_ours = (start == b"\xff\xd8\xff") | (start == b"\x89PN")

    def other() -> tf.Tensor:
        reads = _is_plain_bmp(encoded) | _is_opaque_gif(encoded)
        with tf.control_dependencies([tf.debugging.Assert(reads, [_REFUSAL])]):
            return tf.io.decode_image(
                tf.identity(encoded), channels=3, expand_animations=False
            )

    image = tf.cond(is_ours, lambda: decode.decode_image(encoded), other)
    image = tf.ensure_shape(image, [None, None, 3])
    return exif_in_graph.turn(image, exif_in_graph.orientation(encoded))


def _is_plain_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are a BMP of 24 bits per pixel without compression."""
    # At bytes 28 and 30 of the file: bits per pixel, and compression.
    is_plain = tf.strings.substr(encoded, 28, 6) == b"\x18\0\0\0\0\0"
    return (tf.strings.substr(encoded, 0, 2) == b"BM") & is_plain


def _is_opaque_gif(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are a GIF whose first frame has no transparency."""
    header = tf.strings.substr(encoded, 0, _GIF_HEADER_BYTES)
    data = tf.cast(tf.io.decode_raw(header, tf.uint8), tf.int32)
    padded = tf.concat([data, [0, 0, 0]], 0)
    size = tf.size(data)
    marks = (
        (padded[:size] == 0x21)
        & (padded[1 : size + 1] == 0xF9)
        & (padded[2 : size + 2] == 0x04)
    )
    # A Graphic Control Extension (GIF89a, section 23): bit 0 of the flags says
    # that a color is transparent. A palette may hold the same bytes by chance:
    # then the picture is refused, too.
    flags = tf.boolean_mask(padded[3 : size + 3], marks)
    is_transparent = tf.reduce_any(flags % 2 == 1)
    return (tf.strings.substr(encoded, 0, 3) == b"GIF") & ~is_transparent
