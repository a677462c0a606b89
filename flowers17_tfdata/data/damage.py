"""What is damaged in a JPEG or PNG, and what can be read of it all the same.

TensorFlow's decoders print libjpeg's warnings without the name of a file, and
refuse a JPEG that lacks its last bytes and any PNG with a wrong checksum.
libjpeg-turbo, as simplejpeg has it, makes the same pixels and returns the
warning.
"""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import simplejpeg
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.data.image_formats import PNG_MAGIC

# The least share of a picture that must be there. On 272 validation images of
# Flowers-17, a linear head on MobileNet gave another answer for 3 images whose
# lowest 20 % were gray, for 6 at 30 %, 10 at 40 % and 29 at 50 %.
LEAST_SHARE = 0.8

# The marker at the end of a JPEG (ITU-T T.81, table B.1).
END_OF_JPEG = b"\xff\xd9"

# The gray levels that libjpeg gives to missing pixels, the last two in CMYK.
_MISSING = (128, 64, 63)

# The color spaces of four inks, and the segment of a JPEG whose inks are
# stored as their complement.
_INKS = ("CMYK", "YCCK")
_ADOBE = re.compile(rb"\xff\xee..Adobe", re.DOTALL)

# What simplejpeg says of sampling factors that are allowed, but rare.
_RARE = "Could not determine subsampling"
# How libjpeg's warnings begin.
_LEAD = re.compile(r"^(Corrupt JPEG data|Warning): ")

# Samples per pixel by the color type in a PNG's header.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First row, first column and their steps in the passes of an interlaced PNG
# (Adam7).
_PASSES = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
# The chunks without which the pixels can't be read.
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Bytes that are decompressed at once: as many are lost before an error.
_PIECE = 64


def decode_jpeg(encoded: bytes, ratio: int = 1) -> tuple[np.ndarray, str, bool]:
    """Decodes to the pixels of `tf.io.decode_jpeg(..., 3, ratio)`.

    Where data are missing, the picture is gray.

    Args:
      encoded: a JPEG.
      ratio: 1, 2, 4 or 8, by which the picture may be reduced.

    Returns:
      uint8 `[height, width, 3]` in [0, 255], RGB; what is damaged, or '';
      whether TensorFlow decodes it without printing a warning.

    Raises:
      ValueError: it can't be decoded, or too little of it is there.
    """
    try:
        return _by_turbojpeg(encoded, ratio, strict=True), "", True
    except ValueError as error:
        damage = "" if _RARE in str(error) else _LEAD.sub("", str(error))
    try:
        pixels = _by_turbojpeg(encoded, 1, strict=False)
    except ValueError as error:
        # It also gives up if a warning is about the header, or if the sampling
        # factors are rare.
        pixels = _by_pillow(encoded, str(error))
    if not encoded.endswith(END_OF_JPEG) or "premature end" in damage.lower():
        with tf.device("CPU:0"):
            share = float(share_of_rows(tf.constant(pixels)))
        damage = _incomplete("JPEG", share) if share < 1 else damage
    return pixels, damage, False


def jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Returns the width and height of a JPEG as the decoder finds them.

    Raises:
      ValueError: it finds no frame.
    """
    height, width, _ = _jpeg_header(encoded)
    return width, height


def _jpeg_header(encoded: bytes) -> tuple[int, int, str]:
    """Returns the height, the width and the color space."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(
            encoded, strict=False
        )
    # The file ends before the frame.
    except KeyError as error:
        raise ValueError("a damaged JPEG: no header") from error
    except ValueError as error:
        # libjpeg-turbo begins with the name of its function.
        reason = str(error).rpartition("(): ")[2]
        raise ValueError(f"a damaged JPEG: {reason}") from error
    return height, width, space


def _by_turbojpeg(encoded: bytes, ratio: int, strict: bool) -> np.ndarray:
    height, width, space = _jpeg_header(encoded)
    pixels = simplejpeg.decode_jpeg(
        encoded,
        "CMYK" if space in _INKS else "RGB",
        # As TensorFlow decodes unless it is told otherwise.
        fastdct=True,
        min_height=-(-height // ratio),
        min_width=-(-width // ratio),
        strict=strict,
    )
    if space not in _INKS:
        return pixels
    if not _ADOBE.search(encoded):
        pixels = 255 - pixels
    inks = pixels.astype(np.uint16)
    return (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)


def _by_pillow(encoded: bytes, reason: str) -> np.ndarray:
    """Decodes with another inverse transform, whose levels differ by up to 4.

    Raises:
      ValueError: `reason`, because it can't be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    # Pillow raises many kinds of errors for damaged files.
    except Exception as error:
        raise ValueError(reason) from error


def share_of_rows(image: tf.Tensor) -> tf.Tensor:
    """Returns the share of a JPEG's rows above those without any data.

    Only for a JPEG that is cut short: the lower part of another may be gray.

    Args:
      image: uint8 `[height, width, 3]`.

    Returns:
      float32 scalar in [0, 1].
    """
    height = tf.shape(image)[0]
    is_missing = tf.reduce_any(
        [tf.reduce_all(image == level, [1, 2]) for level in _MISSING], 0
    )
    last = tf.reduce_max(tf.where(is_missing, 0, tf.range(1, height + 1)))
    return tf.cast(last / height, tf.float32)


def _incomplete(kind: str, share: float) -> str:
    """Describes a picture of which only a share is there.

    Raises:
      ValueError: it is too small.
    """
    text = f"incomplete {kind}: {int(100 * share)} % of the picture is there"
    if share < LEAST_SHARE:
        raise ValueError(f"{text}, at least {int(100 * LEAST_SHARE)} % must be")
    return text


def mend_png(encoded: bytes) -> tuple[bytes, str]:
    """Mends the checksums and the end of a PNG.

    Where data are missing, the picture is black, or transparent.

    Returns:
      `encoded` itself, or a PNG that decodes; and what is damaged, or ''.

    Raises:
      ValueError: too little of it is there, or its header is damaged.
    """
    chunks, damage = _read_chunks(encoded)
    if not damage:
        return encoded, ""
    if not chunks or chunks[0][0] != b"IHDR" or "IHDR" in damage:
        raise ValueError("PNG with a damaged header")
    size = _size_of_rows(chunks[0][1])
    raw = _inflate([data for name, data in chunks if name == b"IDAT"], size)
    if len(raw) < size:
        damage = _incomplete("PNG", len(raw) / size)
    kept = [c for c in chunks if c[0] in (b"IHDR", b"PLTE", b"tRNS")]
    data = zlib.compress(raw.ljust(size, b"\0"), 1)
    kept += [(b"IDAT", data), (b"IEND", b"")]
    return PNG_MAGIC + b"".join(_chunk(*chunk) for chunk in kept), damage


def _read_chunks(encoded: bytes) -> tuple[list[tuple[bytes, bytes]], str]:
    """Returns the names and contents of the chunks, and what is damaged."""
    chunks: list[tuple[bytes, bytes]] = []
    start, damage = len(PNG_MAGIC), ""
    while not chunks or chunks[-1][0] != b"IEND":
        head = encoded[start : start + 8]
        if len(head) < 8 or not head[4:].isalpha():
            return chunks, damage or "PNG without its end"
        end = start + 8 + int.from_bytes(head[:4], "big")
        name, data = head[4:], encoded[start + 8 : end]
        checksum = zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big")
        is_right = encoded[end : end + 4] == checksum
        # A decoder passes over other chunks with a wrong checksum.
        if is_right or name in _CRITICAL:
            chunks.append((name, data))
        if not is_right and name in _CRITICAL:
            damage = damage or f"PNG with a wrong checksum of {name.decode()}"
        start = end + 4
    return chunks, damage


def _chunk(name: bytes, data: bytes) -> bytes:
    head = struct.pack(">I", len(data)) + name
    return head + data + struct.pack(">I", zlib.crc32(name + data))


def _size_of_rows(header: bytes) -> int:
    """Returns the number of bytes of all rows, each with its filter's number.

    Args:
      header: the content of IHDR, with the right checksum.
    """
    if len(header) != 13 or header[9] not in _SAMPLES:
        raise ValueError("PNG with a damaged header")
    width, height, bits, kind = struct.unpack_from(">IIBB", header)
    size = 0
    for row, column, row_step, column_step in (
        _PASSES if header[12] else ((0, 0, 1, 1),)
    ):
        rows = -(-(height - row) // row_step)
        columns = -(-(width - column) // column_step)
        if rows > 0 and columns > 0:
            size += rows * (1 + -(-columns * bits * _SAMPLES[kind] // 8))
    return size


def _inflate(parts: list[bytes], size: int) -> bytes:
    """Decompresses as much as is there, at most `size` bytes."""
    inflater, data, raw = zlib.decompressobj(), b"".join(parts), bytearray()
    for start in range(0, len(data), _PIECE):
        try:
            raw += inflater.decompress(data[start : start + _PIECE])
        except zlib.error:
            break
        if len(raw) >= size:
            break
    return bytes(raw[:size])
