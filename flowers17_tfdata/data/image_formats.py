"""What a file is, by its first bytes: names and suffixes may lie.

It imports nothing, so that an export can copy it; see `pillow_reader`.
"""

from __future__ import annotations

# As many bytes of a file as `recognize` needs.
HEADER_BYTES = 64

# The formats that can be read.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF", "HEIC")

# The suffixes of these formats, in lower case.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_STARTS = {
    JPEG_MAGIC: "JPEG",
    PNG_MAGIC: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}

# The bits per pixel and the compression of a BMP whose pixels TensorFlow
# decodes right: 24 bits, none.
PLAIN_BMP, PLAIN_BMP_AT = b"\x18\0\0\0\0\0", 28

# The lengths of the header after the first 14 bytes of a BMP, in all versions:
# two letters alone would also begin many texts.
_BMP_HEADERS = {
    length.to_bytes(4, "little")
    for length in (12, 16, 40, 52, 56, 64, 108, 124)
}

# Raw photographs are TIFF files, of which only a thumbnail could be read.
RAW_SUFFIXES = (
    *(".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".srf", ".pef", ".orf"),
    *(".rw2", ".raf", ".3fr", ".iiq", ".kdc", ".dcr", ".erf", ".srw"),
)

# The brands of ISO/IEC 23008-12 (HEIF) and of the AVIF specification.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
    *(b"mif1", b"msf1"),
}

# What people often take for a photograph, by the start of the file.
_OTHERS = {
    b"%PDF": "a PDF document",
    b"<": "a text of XML or HTML, such as SVG or a web page",
    b"8BPS": "a Photoshop document",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\1\0": "an icon",
    b"PK": "a ZIP archive",
    b"FUJIFILM": "a raw photograph",
}


def recognize(data: bytes) -> str:
    """Returns the format, one of `FORMATS`, that a file begins as, or ''.

    Args:
      data: the file, or at least its first `HEADER_BYTES`.
    """
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        # A box: its size, its type, then brands of four bytes, with the number
        # of a version after the first.
        size = min(int.from_bytes(data[:4], "big"), HEADER_BYTES)
        brands = {data[k : k + 4] for k in (8, *range(16, size, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    return ""


def format_of(data: bytes) -> str:
    """Returns the format of a file, one of `FORMATS`.

    Raises:
      ValueError: it is none of them; says what the file is instead.
    """
    kind = recognize(data)
    if not kind:
        raise ValueError(
            f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}: {describe(data)}"
        )
    return kind


def is_plain_bmp(data: bytes) -> bool:
    """Whether a file is a BMP that TensorFlow's decoder reads right."""
    found = data[PLAIN_BMP_AT : PLAIN_BMP_AT + len(PLAIN_BMP)]
    return recognize(data) == "BMP" and found == PLAIN_BMP


def describe(data: bytes) -> str:
    """Says what a file is that `recognize` doesn't know."""
    if not data:
        return "the file is empty"
    for start, name in _OTHERS.items():
        if data.lstrip().startswith(start):
            return f"it is {name}"
    return f"it begins with {data[:8]!r}"
