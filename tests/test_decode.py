"""Images from outside: turned, in other formats, or not what they declare."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from flowers17_tfdata.data import decode, scan
from tests import fakes

PIXELS = np.array(fakes.make_smooth_image(40, 56))
BIG = 20_000


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return _encode(Image.fromarray(PIXELS), "JPEG", quality=95, exif=exif)


def _pixels(encoded: bytes) -> np.ndarray:
    return decode.decode_image(decode.upright(encoded)).numpy()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photographs_are_turned_as_their_exif_says(orientation):
    encoded = _turned(orientation)
    stored = _pixels(_turned(1))
    expected = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(_pixels(encoded), expected)
    with Image.open(io.BytesIO(encoded)) as image:
        viewed = np.asarray(ImageOps.exif_transpose(image), float)
    # Two JPEG decoders, which round differently.
    np.testing.assert_allclose(expected, viewed, atol=12)


@pytest.mark.parametrize("orientation", [1, 0, 9, 65535])
def test_what_is_upright_stays_as_it_is(orientation):
    encoded = _turned(orientation)
    assert decode.upright(encoded) is encoded


def test_malformed_exif_turns_nothing():
    encoded = _turned(6)
    start = encoded.index(b"Exif\0\0") + 6
    for damage in (b"\xff" * 8, b"MM\0*\xff\xff\xff\xff", b"II*\0\0\0\0\0"):
        damaged = encoded[:start] + damage + encoded[start + 8 :]
        assert decode.upright(damaged) is damaged


def test_thumbnails_are_of_the_upright_image():
    found = scan.scan_images([_turned(1), _turned(6)])
    assert found.sizes.tolist() == [[40, 56], [56, 40]]


def _png_header(width: int, height: int) -> bytes:
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _declaring(kind: str) -> bytes:
    encoded = bytearray(_encode(Image.fromarray(PIXELS), kind))
    if kind == "JPEG":
        # SOF0: marker, length, precision, height, width.
        at = encoded.index(b"\xff\xc0") + 5
        encoded[at : at + 4] = struct.pack(">HH", BIG, BIG)
    elif kind == "GIF":
        encoded[6:10] = struct.pack("<HH", BIG, BIG)
    elif kind == "BMP":
        encoded[18:26] = struct.pack("<ii", BIG, BIG)
    else:
        return _png_header(BIG, BIG)
    return bytes(encoded)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_absurd_declared_size_is_refused_before_decoding(kind):
    with pytest.raises(ValueError, match=r"400000000 pixels\) exceeds limit"):
        decode.upright(_declaring(kind))
    found = scan.scan_images([_declaring(kind)])
    assert "400000000 pixels" in found.errors[0]


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"<svg/>", b"RIFF0000WEBPVP8 ", b"%PDF-1.4"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ValueError, match="no header of a JPEG, PNG, GIF or"):
        decode.upright(data)


GRAY = PIXELS[..., 1]


@pytest.mark.parametrize(
    ("image", "kind", "expected", "atol"),
    [
        pytest.param(
            Image.fromarray(GRAY), "JPEG", np.dstack([GRAY] * 3), 12, id="gray"
        ),
        pytest.param(
            Image.fromarray(GRAY.astype(np.uint16) * 257),
            "PNG",
            np.dstack([GRAY] * 3),
            0,
            id="16 bits",
        ),
        pytest.param(
            Image.fromarray(PIXELS).convert("RGBA"), "PNG", PIXELS, 0, id="rgba"
        ),
        pytest.param(
            Image.fromarray(PIXELS).convert("CMYK"),
            "JPEG",
            PIXELS,
            12,
            id="CMYK",
        ),
        pytest.param(
            Image.fromarray(PIXELS[:1, :1]), "PNG", PIXELS[:1, :1], 0, id="1x1"
        ),
    ],
)
def test_other_kinds_of_images(image, kind, expected, atol):
    pixels = _pixels(_encode(image, kind))
    np.testing.assert_allclose(pixels, expected.astype(float), atol=atol)
    assert decode.decode_and_resize(_encode(image, kind), 32).shape[:2] == (
        32,
        32,
    )


def test_an_animation_is_its_first_frame():
    frames = [
        Image.fromarray(np.full([8, 8, 3], level, np.uint8))
        for level in (200, 10)
    ]
    encoded = _encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (_pixels(encoded) == 200).all()
