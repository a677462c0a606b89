"""EXIF orientation in the graph: the host's result, and never an error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers17_tfdata.data import decode
from flowers17_tfdata.phases.export import exif_in_graph
from tests import fakes

PIXELS = fakes.make_smooth_image(40, 56)

# Traced once: most of these tests read many files.
_orientation = tf.function(
    exif_in_graph.orientation, input_signature=[tf.TensorSpec([], tf.string)]
)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _upright_pixels(encoded):
    image = decode.decode_image(encoded)
    return exif_in_graph.turn(image, exif_in_graph.orientation(encoded))


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _tiff(order: str, entries: list[tuple[int, int, int, int]]) -> bytes:
    """A TIFF structure with entries `(tag, type, count, value)`."""
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        field = struct.pack(order + ("Hxx" if kind == 3 else "I"), value)
        body += struct.pack(order + "HHI", tag, kind, count) + field
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + body + bytes(4)


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _with_segments(*segments: bytes) -> bytes:
    encoded = _jpeg()
    return encoded[:2] + b"".join(segments) + encoded[2:]


def _with_exif(tiff: bytes) -> bytes:
    return _with_segments(_segment(0xE1, b"Exif\0\0" + tiff))


def _read(encoded: bytes) -> int:
    return int(_orientation(tf.constant(encoded)))


OTHERS = [(0x010F, 4, 1, 0x01120003), (0x0100, 3, 1, 6)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_on_the_host(orientation, order):
    entries = [*OTHERS, (0x0112, 3, 1, orientation), (0x011A, 4, 1, 3)]
    encoded = _with_exif(_tiff(order, entries))
    assert _read(encoded) == orientation
    np.testing.assert_array_equal(
        _upright_pixels(tf.constant(encoded)),
        decode.decode_image(decode.upright(encoded)),
    )


@pytest.mark.parametrize("order", "<>")
def test_the_value_may_be_long(order):
    encoded = _with_exif(_tiff(order, [(0x0112, 4, 1, 6)]))
    assert _read(encoded) == 6
    assert decode.upright(encoded) != encoded


@pytest.mark.parametrize("late", [False, True])
def test_a_png_is_turned_as_on_the_host(late):
    encoded = _png()
    if late:
        # After the pixels.
        start = encoded.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
        chunk = encoded[start:end]
        encoded = encoded[:start] + encoded[end:-12] + chunk + encoded[-12:]
    assert _read(encoded) == 6
    np.testing.assert_array_equal(
        _upright_pixels(tf.constant(encoded)),
        decode.decode_image(decode.upright(encoded)),
    )
    for cut in (encoded[:8], encoded[:11], encoded[:40]):
        assert 1 <= _read(cut) <= 8


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_tag_may_be_anywhere_in_the_directory(position):
    entries = list(OTHERS)
    entries.insert(position, (0x0112, 3, 1, 6))
    assert _read(_with_exif(_tiff("<", entries))) == 6


def test_other_segments_and_fill_bytes_may_precede_it():
    exif_segment = _segment(0xE1, b"Exif\0\0" + _tiff(">", [(0x112, 3, 1, 8)]))
    encoded = _with_segments(
        _segment(0xE0, b"JFIF\0" + bytes(9)),
        _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        _segment(0xE2, bytes(60_000)),
        b"\xff\xff" + exif_segment,
    )
    assert _read(encoded) == 8
    assert decode.upright(encoded) != encoded


def _png() -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(PIXELS)
    exif_data = Image.Exif()
    exif_data[0x0112] = 6
    image.save(stream, "PNG", exif=exif_data)
    return stream.getvalue()


SIX = _tiff("<", [(0x0112, 3, 1, 6)])


@pytest.mark.parametrize(
    "encoded",
    [
        _jpeg(),
        b"",
        b"\xff",
        b"\xff\xd8\xff",
        b"no image",
        # Cut short: within the entry, the directory, the header.
        _with_exif(SIX[:19]),
        _with_exif(SIX[:18]),
        _with_exif(SIX[:12]),
        _with_exif(SIX[:6]),
        _with_exif(b""),
        # A directory beyond the end; wrong byte order; wrong magic.
        _with_exif(b"II*\0\xff\xff\xff\xff" + SIX[8:]),
        _with_exif(b"MM\0*" + SIX[4:]),
        _with_exif(b"II+\0" + SIX[4:]),
        # Values out of range, a list of values, another type.
        _with_exif(_tiff("<", [(0x0112, 3, 1, 0)])),
        _with_exif(_tiff("<", [(0x0112, 3, 1, 9)])),
        _with_exif(_tiff("<", [(0x0112, 3, 2, 6)])),
        _with_exif(_tiff("<", [(0x0112, 7, 1, 6)])),
        # After the pixels have begun.
        _jpeg() + _segment(0xE1, b"Exif\0\0" + SIX),
    ],
)
def test_without_an_orientation_pixels_stay_as_stored(encoded):
    assert _read(encoded) == 1


def test_millions_of_segments_end_soon():
    assert _read(b"\xff\xd8" + b"\xff" * 2**22) == 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise(data):
    for encoded in (
        data,
        b"\xff\xd8\xff" + data,
        b"\xff\xd8\xff\xe1" + data,
        b"\xff\xd8" + _segment(0xE1, b"Exif\0\0" + data),
        b"\xff\xd8" + _segment(0xE1, b"Exif\0\0II*\0" + data),
    ):
        assert 1 <= _read(encoded) <= 8


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x0100, 0x0112, 0x0113, 0x1201]),
            st.sampled_from([3, 4]),
            st.just(1),
            st.integers(0, 10),
        ),
        max_size=8,
    ),
    st.sampled_from("<>"),
    st.integers(0, 40),
)
def test_directories_are_read_as_pillow_reads_them(entries, order, cut):
    tiff = _tiff(order, entries)
    encoded = _with_exif(tiff[: len(tiff) - cut])
    np.testing.assert_array_equal(
        _upright_pixels(tf.constant(encoded)),
        decode.decode_image(decode.upright(encoded)),
    )


_XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>
</x:xmpmeta>"""


@pytest.mark.parametrize(
    "segments",
    [
        [b"http://ns.adobe.com/xap/1.0/\0" + _XMP],
        [
            b"Exif\0\0" + _tiff("<", OTHERS),
            b"http://ns.adobe.com/xap/1.0/\0" + _XMP,
        ],
        [b"Exif\0\0" + _tiff(">", [(0x0112, 3, 2, 6)])],
    ],
    ids=["xmp", "exif_and_xmp", "two_values"],
)
def test_graph_and_host_ignore_other_orientations(segments):
    encoded = _with_segments(*(_segment(0xE1, s) for s in segments))
    assert _read(encoded) == 1
    assert decode.upright(encoded) == encoded
