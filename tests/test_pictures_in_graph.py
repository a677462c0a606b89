"""Pictures in the graph of an exported model: the host's pixels, or refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.export import pictures_in_graph
from tests import fakes

PIXELS = np.array(fakes.make_smooth_image(40, 56))
ALPHA = np.tile(np.arange(56, dtype=np.uint8) * 4, [40, 1])
LAYERS = np.dstack([PIXELS, ALPHA])

_decode = tf.function(
    pictures_in_graph.decode_upright,
    input_signature=[tf.TensorSpec([], tf.string)],
)


def _encode(mode: str, kind: str, pixels=PIXELS, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind in ("JPEG", "PNG"):
        options["exif"] = exif
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _encode_palette(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).quantize(8).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        _encode("RGB", "JPEG"),
        _encode("L", "JPEG"),
        _encode("CMYK", "JPEG"),
        _encode("RGB", "JPEG", progressive=True),
        _encode("RGB", "PNG"),
        _encode("RGBA", "PNG", LAYERS),
        _encode("LA", "PNG", LAYERS),
        _encode_palette("PNG", transparency=3),
        _encode("1", "PNG"),
        _encode("RGB", "BMP"),
    ],
)
def test_pixels_are_those_of_the_host(encoded):
    np.testing.assert_array_equal(
        _decode(tf.constant(encoded)),
        decode.decode_image(decode.upright(encoded)),
    )


@pytest.mark.parametrize(
    "encoded",
    [
        _encode("P", "BMP"),
        _encode("L", "BMP"),
        _encode("1", "BMP"),
        _encode("RGBA", "BMP"),
        _encode_palette("GIF"),
        _encode("RGB", "WebP"),
        _encode("RGB", "TIFF"),
        _encode("RGB", "AVIF"),
        b"",
        b"text",
        b"BM",
        b"GIF89a",
    ],
)
def test_what_the_graph_would_misread_is_refused(encoded):
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="this model reads JPEG, PNG"
    ):
        _decode(tf.constant(encoded))
