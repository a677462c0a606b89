"""When and by which camera photographs were taken, and series of them.

Photographs of a series show the same subject, but no hash tells so.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from flowers17_tfdata.data import decode, pillow_reader

# In a series, a photograph follows the one before within this time. One takes
# a second to shoot again, and more than ten to go to the next subject.
MOST_SECS = 10.0

_TIME = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")


class Shot(NamedTuple):
    """What the EXIF of a photograph says about its taking.

    Attributes:
      secs: when it was taken, by the camera's clock, seconds; NaN: unknown.
      camera: the camera's make, model and serial number, as far as known.
    """

    secs: float = math.nan
    camera: str = ""


def read(encoded: bytes) -> Shot:
    """Reads when and by which camera a photograph was taken, if it says so.

    Args:
      encoded: an image that `decode.read` decodes.
    """
    try:
        return _read(encoded)
    # Any error: as everywhere, malformed metadata is passed over.
    except Exception:
        return Shot()


def _read(encoded: bytes) -> Shot:
    exif = decode.read_exif(encoded)
    if exif is not None:
        return _to_shot(exif)
    with pillow_reader.open_image(encoded) as image:
        # A TIFF is read on while its directories are.
        return _to_shot(image.getexif())


def _to_shot(exif: Image.Exif) -> Shot:
    details = exif.get_ifd(ExifTags.IFD.Exif)
    taken = _TIME.match(_text(details.get(ExifTags.Base.DateTimeOriginal)))
    if not taken:
        return Shot()
    # Without time zone: no two clocks are compared.
    secs = calendar.timegm(tuple(map(int, taken.groups())))
    subsec = _text(details.get(ExifTags.Base.SubsecTimeOriginal))
    # Some cameras write something else into it.
    fraction = subsec if subsec.isdecimal() and subsec.isascii() else "0"
    camera = (
        exif.get(ExifTags.Base.Make),
        exif.get(ExifTags.Base.Model),
        details.get(ExifTags.Base.BodySerialNumber),
    )
    name = " ".join(filter(None, map(_text, camera)))
    return Shot(secs + float(f"0.{fraction}"), name)


def _text(value: object) -> str:
    return "" if value is None else " ".join(str(value).strip("\0").split())


def find(secs: np.ndarray, cameras: Sequence[str]) -> list[list[int]]:
    """Finds the series: runs of photographs of one camera.

    Args:
      secs: float64 `[n]`, see `Shot`.
      cameras: `[n]`, see `Shot`.

    Returns:
      The positions of each series of two or more, in the order of taking.
    """
    known = [k for k, at in enumerate(secs) if math.isfinite(at)]
    known.sort(key=lambda k: (cameras[k], secs[k]))
    runs: list[list[int]] = []
    for k in known:
        last = runs[-1][-1] if runs else k
        follows = cameras[last] == cameras[k]
        if last != k and follows and secs[k] - secs[last] <= MOST_SECS:
            runs[-1].append(k)
        else:
            runs.append([k])
    return [run for run in runs if len(run) > 1]
