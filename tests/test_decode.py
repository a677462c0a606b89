"""Images from outside: turned, in other formats, or not what they declare."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib

import numpy as np
import pillow_heif
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
    with pytest.raises(ValueError, match=r"400000000 pixels"):
        decode.upright(_declaring(kind))
    found = scan.scan_images([_declaring(kind)])
    assert "400000000 pixels" in found.errors[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff", "a damaged JPEG"),
        (b"  <svg/>", "SVG or a web page"),
        (b"RIFF0000WEBPVP8 ", "WebP that can't be read"),
        (b"%PDF-1.4", "a PDF document"),
        (b"text", "it begins with b'text'"),
        (b"\0\0\0\x10ftypmp42\0\0\0\0", "it begins with"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
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


def _layers(kind: str) -> np.ndarray:
    """RGBA whose right half is transparent, with other colors hidden there."""
    layers = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    layers[:, 28:, 3] = 0
    layers[:, 28:, :3] = {"black": 0, "kept": layers[:, 28:, :3]}[kind]
    return layers


ON_WHITE = PIXELS.copy()
ON_WHITE[:, 28:] = 255


@pytest.mark.parametrize("hidden", ["black", "kept"])
@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF"])
def test_transparent_pixels_are_white(kind, hidden):
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    encoded = _encode(Image.fromarray(_layers(hidden)), kind, **options)
    np.testing.assert_array_equal(_pixels(encoded), ON_WHITE)


def test_half_transparent_pixels_are_mixed_with_white():
    layers = np.full([4, 4, 4], 100, np.uint8)
    layers[..., 3] = 51
    encoded = _encode(Image.fromarray(layers), "PNG")
    assert (_pixels(encoded) == round(100 * 0.2 + 255 * 0.8)).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_color_of_a_palette_is_white(kind):
    palette = Image.fromarray(PIXELS).quantize(8)
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == 3] = 255
    encoded = _encode(palette, kind, transparency=3)
    np.testing.assert_array_equal(_pixels(encoded), shown)


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "RGBA"])
def test_all_kinds_of_bmp_are_what_a_viewer_shows(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    encoded = _encode(image, "BMP")
    np.testing.assert_array_equal(_pixels(encoded), expected)


@pytest.mark.parametrize(
    ("kind", "options", "atol"),
    [
        ("WebP", {"lossless": True}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 95}, 24),
        ("HEIF", {"quality": 95}, 24),
    ],
)
def test_formats_that_pillow_reads(kind, options, atol):
    pillow_heif.register_heif_opener()
    encoded = _encode(Image.fromarray(PIXELS), kind, **options)
    pixels = _pixels(encoded)
    np.testing.assert_allclose(pixels, PIXELS.astype(float), atol=atol)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = _pixels(
        _encode(Image.fromarray(PIXELS), kind, exif=exif.tobytes(), **options)
    )
    np.testing.assert_allclose(turned, np.rot90(pixels, -1), atol=atol)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("has_box", [True, False])
def test_heic_is_turned_once_with_or_without_a_box_that_says_so(
    orientation, has_box
):
    """iPhones write the box `irot`; other programs only the EXIF."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    encoded = _encode(
        Image.fromarray(PIXELS),
        "HEIF",
        quality=95,
        # pillow-heif looks for the orientation in bytes alone.
        exif=exif.tobytes() if has_box else exif,
    )
    assert (b"irot" in encoded) == (has_box and orientation not in (1, 2, 4))
    expected = _pixels(_turned(orientation)).astype(float)
    np.testing.assert_allclose(_pixels(encoded), expected, atol=24)


def test_heic_without_its_extra_says_how_to_get_it(monkeypatch):
    pillow_heif.register_heif_opener()
    encoded = _encode(Image.fromarray(PIXELS), "HEIF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        decode.upright(encoded)


def _chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**21))),
        _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**21))),
        _chunk(b"tEXt", b"k\0v", crc=1),
        _chunk(b"pHYs", bytes(9), crc=1),
        _chunk(b"pHYs", bytes(3)),
        _chunk(b"gAMA", bytes(1)),
        _chunk(b"acTL", bytes(2)),
        _chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    ],
)
def test_metadata_does_not_decide_about_a_png(chunk):
    encoded = _encode(Image.fromarray(PIXELS), "PNG")
    after_header = 8 + 25
    changed = encoded[:after_header] + chunk + encoded[after_header:]
    np.testing.assert_array_equal(_pixels(changed), PIXELS)


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xEE])
@pytest.mark.parametrize("content", [b"", b"JF", b"Adobe", b"Exif\0\0M"])
def test_metadata_does_not_decide_about_a_jpeg(marker, content):
    encoded = _encode(Image.fromarray(PIXELS), "JPEG", quality=95)
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    changed = encoded[:2] + segment + encoded[2:]
    np.testing.assert_array_equal(_pixels(changed), _pixels(encoded))


def test_a_png_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    encoded = _encode(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(_pixels(encoded), np.rot90(PIXELS, -1))


def test_a_jpeg_of_12_bits_is_refused_in_words():
    encoded = bytearray(_encode(Image.fromarray(PIXELS), "JPEG"))
    encoded[encoded.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ValueError, match="a JPEG of 12 bits per sample"):
        decode.upright(bytes(encoded))


def test_gray_of_16_bits_keeps_its_shades():
    gray = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    encoded = _encode(Image.fromarray(gray), "TIFF")
    assert (_pixels(encoded)[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize("transparency", [None, 0])
@pytest.mark.parametrize(
    ("mode", "bits"), [("1", 1), ("P", 1), ("P", 2), ("P", 4)]
)
def test_a_png_of_few_bits_keeps_its_colors(mode, bits, transparency):
    image = Image.fromarray(PIXELS).quantize(2**bits)
    image = image if mode == "P" else image.convert("1")
    options = {} if transparency is None else {"transparency": transparency}
    encoded = _encode(image, "PNG", bits=bits, **options)
    assert encoded[24] == bits
    expected = np.asarray(image.convert("RGB")).copy()
    if transparency is not None:
        expected[np.asarray(image) == transparency] = 255
    np.testing.assert_array_equal(_pixels(encoded), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_gray_png_of_few_bits_keeps_its_shades(bits):
    levels = np.arange(2**bits, dtype=np.uint8)
    row = np.packbits(np.unpackbits(levels[:, None], axis=1)[:, 8 - bits :])
    header = struct.pack(">IIBBBBB", len(levels), 1, bits, 0, 0, 0, 0)
    encoded = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes()))
        + _chunk(b"IEND", b"")
    )
    expected = levels * (255 // (2**bits - 1))
    np.testing.assert_array_equal(_pixels(encoded)[0, :, 0], expected)


def test_what_follows_the_end_of_a_png_does_not_count():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = _encode(Image.fromarray(PIXELS), "PNG", exif=exif)
    start = turned.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(turned[start : start + 4], "big")
    late = turned[:start] + turned[end:] + turned[start:end]
    np.testing.assert_array_equal(_pixels(late), PIXELS)
    small = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    with pytest.raises(ValueError, match="400000000 pixels"):
        decode.upright(_png_header(BIG, BIG) + small)


def test_a_text_that_begins_like_a_bmp_is_none():
    with pytest.raises(ValueError, match="it begins with"):
        decode.upright(b"BMW owners club, the list of members")


def test_more_than_16_bits_are_refused():
    image = Image.fromarray(np.full([4, 4], 0.5, np.float32))
    with pytest.raises(ValueError, match="more than 16 bits"):
        decode.upright(_encode(image, "TIFF"))
