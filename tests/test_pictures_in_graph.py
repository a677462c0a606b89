"""Pictures in the graph of an exported model: the host's pixels, or refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.export import parity, pictures_in_graph
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


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_damaged_jpeg_is_read_as_by_the_host(mode, options):
    large = np.array(fakes.make_smooth_image(160, 160))
    whole = _encode(mode, "JPEG", large, **options)
    at = len(whole) - 30
    for encoded in (
        whole[:-1],
        whole[:-2],
        whole[: int(0.9 * len(whole))],
        whole + bytes(99),
        whole[:at] + bytes(9) + whole[at + 9 :],
    ):
        np.testing.assert_array_equal(
            _decode(tf.constant(encoded)), decode.read(encoded).pixels
        )
    half = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match="incomplete JPEG"):
        decode.read(half)
    with pytest.raises(tf.errors.InvalidArgumentError, match="incomplete JPEG"):
        _decode(tf.constant(half))


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


def test_the_parity_check_sends_what_the_graph_reads():
    turned, damaged = _encode("RGB", "JPEG"), _encode("RGB", "JPEG")[:-2]
    files = [turned, damaged, _encode("RGB", "WebP"), _encode("P", "BMP")]
    rows = [(str(k), 0, data) for k, data in enumerate(files)]
    source = fakes.FakeSource(("a",), {"test": rows})
    (sent,) = parity.Split(source, "test", None).batches(encoded=True)
    assert sent[0] == turned
    for data, original in zip(sent, files, strict=True):
        np.testing.assert_array_equal(
            _decode(tf.constant(data)), decode.read(original).pixels
        )
    # The decoder would print a warning.
    assert sent[1] != damaged
