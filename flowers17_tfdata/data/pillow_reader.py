"""Reads pictures of all formats by Pillow: upright, RGB, opaque.

An export copies this file and `image_formats` into its folder `pictures`. So
both import nothing else of this package, and no TensorFlow.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Relative, because the folder of an export is not this package.
from . import image_formats

# Pillow warns about malformed metadata and large images without naming them.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The most pixels of an image, as Pillow limits it: 179 million.
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)


class MissingReaderError(ValueError):
    """A file that could be read if another package were installed."""


def read(encoded: bytes) -> Image.Image:
    """Returns what a viewer shows, on white where it is transparent.

    Args:
      encoded: an image in one of `image_formats.FORMATS`.

    Returns:
      The image in mode RGB, 8 bits, turned as its metadata says.

    Raises:
      ValueError: the bytes are in none of these formats, can't be decoded, or
        declare more than 179 million pixels.
      MissingReaderError: it is HEIC, and pillow-heif is not installed.
    """
    kind = image_formats.format_of(encoded)
    try:
        with open_image(encoded) as image:
            check_size(*image.size)
            image.load()
            if kind == "HEIC" and not _turns_by_itself(encoded):
                _restore_orientation(image)
            return as_shown(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{kind} with a header that is damaged or of a rare kind"
        ) from error
    except (MemoryError, MissingReaderError):
        raise
    # Decoders raise many kinds of errors for damaged files.
    except Exception as error:
        raise ValueError(f"{kind} that can't be read: {error}") from error


def open_image(encoded: bytes) -> Image.Image:
    """Opens an image whose pixels are not decoded yet.

    Raises:
      ValueError: see `read`; also any error of Pillow.
    """
    kind = image_formats.format_of(encoded)
    if kind == "HEIC":
        _register_heic()
    # WebP is WEBP for Pillow, and HEIC is HEIF.
    name = {"HEIC": "HEIF"}.get(kind, kind.upper())
    return Image.open(io.BytesIO(encoded), formats=[name])


def as_shown(image: Image.Image) -> Image.Image:
    """Returns what a viewer shows, in mode RGB, 8 bits.

    Raises:
      ValueError: it has more than 16 bits per sample.
    """
    return _on_white(_turned(image))


def to_png(image: Image.Image) -> bytes:
    """Returns the image as a PNG file."""
    stream = io.BytesIO()
    # Decoded again at once, so speed matters more than size.
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def check_size(width: int, height: int) -> None:
    """Checks a declared size before the pixels are decoded.

    Raises:
      ValueError: it exceeds 179 million pixels.
    """
    if width * height > _MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} = {width * height} pixels exceed the limit of "
            f"{_MAX_PIXELS}"
        )


def _register_heic() -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise MissingReaderError(
            "it is HEIC, which needs: pip install pillow-heif"
        )
    import pillow_heif

    pillow_heif.register_heif_opener()


def _turns_by_itself(encoded: bytes) -> bool:
    """Whether a HEIC file states how to turn its pixels.

    These are the boxes `irot` and `imir` in the box `meta` (ISO/IEC 23008-12,
    6.5.10 and 6.5.12). pillow-heif has applied them already, and has set the
    orientation in EXIF to 1.
    """
    start = 0
    while len(encoded) >= start + 8:
        size, name = struct.unpack_from(">I4s", encoded, start)
        if name == b"meta":
            box = encoded[start : start + size]
            return b"irot" in box or b"imir" in box
        if size == 1 and len(encoded) >= start + 16:
            # The size follows, in 64 bits.
            (size,) = struct.unpack_from(">Q", encoded, start + 8)
        if size < 8:
            break
        start += size
    return False


def _restore_orientation(image: Image.Image) -> None:
    """Lets the EXIF of a HEIC file count that states no turn of its own."""
    original = image.info.get("original_orientation")
    if original:
        image.getexif()[ExifTags.Base.Orientation] = original


def _turned(image: Image.Image) -> Image.Image:
    """Applies the orientation that the metadata states, if it can be read."""
    try:
        return ImageOps.exif_transpose(image)
    # Any error: metadata must not decide about pixels.
    except Exception:
        return image


def _on_white(image: Image.Image) -> Image.Image:
    """Returns an image in RGB, 8 bits, composed on white if transparent."""
    if image.mode.startswith(("I", "F")):
        # Gray of 16 bits, which Pillow would cut off at 255.
        gray = np.asarray(image, np.float64)
        if image.mode == "F" or gray.min() < 0 or gray.max() > 65535:
            raise ValueError("it has more than 16 bits per sample")
        image = Image.fromarray((gray / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        image = Image.alpha_composite(white, layers)
    return image.convert("RGB")
