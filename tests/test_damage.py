"""Damaged files: what is read of them, how they are named, what is printed."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.data import damage, decode, scan
from flowers17_tfdata.data.image_formats import PNG_MAGIC
from tests import fakes

PIXELS = np.array(fakes.make_smooth_image(160, 208))
PIXELS += np.random.default_rng(0).integers(0, 40, PIXELS.shape, np.uint8)


def _encode(mode: str, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


JPEG = _encode("RGB", "JPEG")
KINDS = {
    "plain": JPEG,
    "gray": _encode("L", "JPEG"),
    "inks": _encode("CMYK", "JPEG"),
    "restarts": _encode("RGB", "JPEG", restart_marker_rows=1),
    "progressive": _encode("RGB", "JPEG", progressive=True),
}


def _zeroed(data: bytes, at: float, length: int = 64) -> bytes:
    start = int(len(data) * at)
    return data[:start] + bytes(length) + data[start + length :]


def _decoded(data: bytes, ratio: int = 1) -> np.ndarray:
    return tf.io.decode_jpeg(data, channels=3, ratio=ratio).numpy()


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_has_the_pixels_that_tensorflow_decodes(kind, ratio):
    pixels, damaged, is_clean = damage.decode_jpeg(KINDS[kind], ratio)
    np.testing.assert_array_equal(pixels, _decoded(KINDS[kind], ratio))
    assert (damaged, is_clean) == ("", True)


def test_inks_without_adobes_marker_are_not_complements():
    data = KINDS["inks"].replace(b"Adobe", b"other")
    np.testing.assert_array_equal(damage.decode_jpeg(data)[0], _decoded(data))


@pytest.mark.parametrize(
    "added", [bytes(5000), JPEG, b"\xff" * 3], ids=["zeros", "second", "fill"]
)
def test_what_follows_the_end_of_a_jpeg_is_no_damage(added):
    picture = decode.read(JPEG + added)
    assert not picture.damage
    np.testing.assert_array_equal(picture.pixels, _decoded(JPEG))


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_last_bytes_is_used_and_named(kind):
    whole = decode.read(KINDS[kind]).pixels
    for lost in (1, 2):
        picture = decode.read(KINDS[kind][:-lost])
        np.testing.assert_array_equal(picture.pixels, whole)
        assert picture.damage == "Premature end of JPEG file"
    shorter = decode.read(KINDS[kind][: int(0.85 * len(KINDS[kind]))])
    assert shorter.damage
    if kind != "progressive":
        assert re.match(r"incomplete JPEG: (8|9)\d % of", shorter.damage)
        np.testing.assert_array_equal(shorter.pixels[:120], whole[:120])
        assert len(np.unique(shorter.pixels[-1])) == 1


def test_an_end_marker_does_not_make_half_a_jpeg_whole():
    half = JPEG[: len(JPEG) // 2]
    with pytest.raises(ValueError, match="incomplete JPEG: "):
        decode.read(half + damage.END_OF_JPEG)


@pytest.mark.parametrize("kind", ["plain", "gray", "inks", "restarts"])
def test_half_of_a_jpeg_is_refused(kind):
    half = KINDS[kind][: len(KINDS[kind]) // 2]
    with pytest.raises(
        ValueError, match=r"incomplete JPEG: [45]\d % .* at least 80 % must be"
    ):
        decode.read(half)
    # The share is that of the whole picture, however far a scan reduces it.
    assert "at least 80 %" in scan.scan_images([half]).errors[0]


def test_a_gray_part_of_a_whole_jpeg_is_no_damage():
    pixels = PIXELS.copy()
    pixels[40:] = 128
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    assert not decode.read(data + bytes(99)).damage
    # Damaged otherwise, but whole.
    picture = decode.read(data[:-2] + bytes(9) + data[-2:])
    assert picture.damage.endswith("extraneous bytes before marker 0xd9")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_zeroed(JPEG, 0.8), "premature end of data segment"),
        (JPEG[:-2] + bytes(9) + JPEG[-2:], "extraneous bytes before marker"),
        (JPEG.replace(b"JFIF\0\1", b"JFIF\0\7"), "unknown JFIF revision"),
        (JPEG[:20] + b"\1\2\3" + JPEG[20:], "extraneous bytes"),
    ],
)
def test_a_damaged_jpeg_is_a_png_for_all_that_follows(data, reason):
    picture = decode.read(data)
    assert reason in picture.damage
    assert "\n" not in picture.damage
    file = decode.upright(data)
    assert file.startswith(PNG_MAGIC)
    np.testing.assert_array_equal(decode.decode_image(file), picture.pixels)


def test_rare_sampling_factors_are_no_damage():
    data = bytearray(_encode("RGB", "JPEG", subsampling=0))
    # The first component in SOF0.
    data[data.index(b"\xff\xc0") + 11] = 0x42
    picture = decode.read(bytes(data))
    assert picture.pixels.shape == PIXELS.shape
    assert not picture.damage


def test_nothing_is_printed_about_damaged_files(capfd):
    files = [
        JPEG[:-2],
        JPEG[: len(JPEG) // 2],
        _zeroed(JPEG, 0.8),
        JPEG[:20] + bytes(5) + JPEG[20:],
        b"\xff\xd8\xff no image",
        _encode("RGB", "PNG")[:-20],
    ]
    for data in files:
        found = scan.scan_images([data])
        if not found.errors:
            decode.decode_image(decode.upright(data))
    captured = capfd.readouterr()
    assert "JPEG" not in captured.err
    assert "jpeg" not in captured.err
    assert not captured.out


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def _interlaced() -> bytes:
    """RGB in the seven passes of Adam7, each row without a filter."""
    height, width = PIXELS.shape[:2]
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in damage._PASSES
        for row in PIXELS[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows))
    return PNG_MAGIC + data + _chunk(b"IEND", b"")


PNGS = {
    **{mode: _encode(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "1")},
    "I;16": _encode("I;16", "PNG"),
    "P": _encode("P", "PNG"),
    "few colors": _encode("P", "PNG", bits=4),
    "interlaced": _interlaced(),
}


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_with_a_wrong_checksum_or_no_end_is_used_and_named(kind):
    data = PNGS[kind]
    whole = decode.read(data)
    assert not whole.damage
    assert whole.file is data
    end = data.index(b"IDAT") - 4
    end += 8 + int.from_bytes(data[end : end + 4], "big")
    for damaged, reason in (
        (data[:end] + b"\1\2\3\4" + data[end + 4 :], "checksum of IDAT"),
        (data[:-12], "without its end"),
        (data[:-1] + b"x", "checksum of IEND"),
    ):
        picture = decode.read(damaged)
        assert reason in picture.damage
        np.testing.assert_array_equal(picture.pixels, whole.pixels)
        file = decode.upright(damaged)
        np.testing.assert_array_equal(decode.decode_image(file), whole.pixels)


def test_most_of_a_png_is_used_and_half_is_refused():
    data = PNGS["RGB"]
    picture = decode.read(data[: int(0.95 * len(data))])
    assert picture.damage.startswith("incomplete PNG: 9")
    np.testing.assert_array_equal(picture.pixels[:140], PIXELS[:140])
    assert not picture.pixels[-1].any()
    with pytest.raises(ValueError, match=r"incomplete PNG: [45]. %"):
        decode.read(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [
        PNG_MAGIC,
        PNGS["RGB"][:20] + b"\0\0\1\0" + PNGS["RGB"][24:],
        PNG_MAGIC + _chunk(b"IHDR", b"\0\0\0\1\0\0\0\1"),
        PNG_MAGIC
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 5, 0, 0, 0)),
    ],
)
def test_a_png_without_a_right_header_is_refused(data):
    with pytest.raises(ValueError, match="PNG with a damaged header"):
        decode.read(data)


def test_a_damaged_photograph_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, lost in (("JPEG", 2), ("PNG", 12)):
        data = _encode("RGB", kind, exif=exif)
        whole, cut = decode.read(data), decode.read(data[:-lost])
        assert cut.damage
        assert cut.size == whole.size == (208, 160)
        np.testing.assert_array_equal(cut.pixels, whole.pixels)
