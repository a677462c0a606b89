"""Finds photographs that are blurred, dark, over-exposed, gray or elongated.

Each measure is taken where the photograph is at its best, so that a dark or a
blurred background is no fault. `docs/own_images.md` has the shares of damaged
copies that the bounds find, and their false alarms among 1360 photographs.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

# Images are reduced to this shorter side, pixels, to measure their sharpness.
_SIDE = 256

# Colors need fewer pixels: every second, or third, so that about as many stay
# on the shorter side.
_SIDE_OF_COLORS = 128

# The sharpest of as many by as many tiles counts; in small images fewer, of no
# less than this side, pixels.
_TILES, _LEAST_TILE = 8, 8

# From this value on, a channel is clipped: JPEG moves 255 by a little.
_CLIPPED = 253

# Below this brightness, rounding is all that is left to measure.
_LEAST_BRIGHTNESS = 8

# Green against red, and blue against yellow: Hasler and Suesstrunk, "Measuring
# Colourfulness in Natural Images", 2003.
_OPPONENTS = np.array([[1, -1, 0], [0.5, 0.5, -1]], np.float32)

NUM_MEASURES = 4


class _Kind(NamedTuple):
    """When a measure is a fault: beyond both a bound and the usual.

    Attributes:
      bound: no value on the good side of it is a fault.
      factor: how many times the data set's usual value is beyond the usual.
      is_high: whether high values are the faults.
      usual: the quantile that is the usual value.
    """

    bound: float
    factor: float
    is_high: bool = False
    usual: float = 0.5


# In the order of the measures; the last one is computed from the size. A tenth
# of all images may be panoramas: then these are usual.
_KINDS = {
    "blurred": _Kind(200, 10),
    "dark": _Kind(100, 2),
    "over-exposed": _Kind(0.5, 4, is_high=True),
    "gray among colored": _Kind(5, 4),
    "unusual aspect ratio": _Kind(2, 1.25, is_high=True, usual=0.9),
}


class Fault(NamedTuple):
    """The position of an image, the kind of its fault, the value measured."""

    position: int
    kind: str
    value: float


def measure(pixels: np.ndarray) -> np.ndarray:
    """Measures what the faults of a photograph show in.

    Args:
      pixels: uint8 `[height, width, 3]` in [0, 255], RGB.

    Returns:
      float32 `[NUM_MEASURES]`:
        the variance of the Laplacian (Pech-Pacheco et al., "Diatom
        autofocusing in brightfield microscopy", 2000) in the sharpest tile;
        the gray level that one pixel in a hundred exceeds, in [0, 255];
        the share of pixels with a clipped channel in the middle half of both
        sides;
        the colorfulness of Hasler and Suesstrunk.
      The first and the last are of the image lit so that its brightest pixels
      are white: else each dark image would be blurred and gray, too.
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    scale = _SIDE / min(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # The faster one skips pixels below half the size.
        how = cv2.INTER_LINEAR if scale > 0.5 else cv2.INTER_AREA
        gray = cv2.resize(gray, size, interpolation=how)
    below = np.cumsum(cv2.calcHist([gray], [0], None, [256], [0, 256]))
    brightness = int(np.searchsorted(below, 0.99 * below[-1]))
    gain = 255 / max(brightness, _LEAST_BRIGHTNESS)
    step = max(1, min(height, width) // _SIDE_OF_COLORS)
    colors = np.ascontiguousarray(pixels[::step, ::step])
    opponents = cv2.transform(colors.astype(np.float32), _OPPONENTS)
    mean, deviation = cv2.meanStdDev(opponents)
    colorfulness = np.linalg.norm(deviation) + 0.3 * np.linalg.norm(mean)
    return np.array(
        [
            _sharpness(gray) * gain**2,
            brightness,
            _clipped_share(colors),
            colorfulness * gain,
        ],
        np.float32,
    )


def _clipped_share(colors: np.ndarray) -> float:
    """Returns the share of pixels in the middle with a clipped channel."""
    top, left = (side // 4 for side in colors.shape[:2])
    middle = colors[top : len(colors) - top, left : colors.shape[1] - left]
    red, green, blue = cv2.split(middle)
    brightest = cv2.max(cv2.max(red, green), blue)
    return float(np.mean(brightest >= _CLIPPED))


def _sharpness(gray: np.ndarray) -> float:
    """Returns the variance of the Laplacian in the sharpest tile."""
    edges = cv2.Laplacian(gray, cv2.CV_32F)
    rows, columns = (
        min(_TILES, max(1, side // _LEAST_TILE)) for side in gray.shape
    )
    height, width = gray.shape[0] // rows, gray.shape[1] // columns
    tiles = edges[: rows * height, : columns * width].reshape(
        rows, height, columns, width
    )
    return float(tiles.var(axis=(1, 3)).max())


def find(measures: np.ndarray, sizes: np.ndarray) -> list[Fault]:
    """Finds the images whose measures are beyond the bounds and unusual.

    Args:
      measures: float32 `[n, NUM_MEASURES]`, see `measure`.
      sizes: `[n, 2]`, height and width, pixels; zeros are passed over.

    Returns:
      The faults kind by kind, the worst first. The value of the aspect ratio
      is that of the longer side to the shorter.
    """
    readable = np.flatnonzero(sizes.all(axis=1))
    if not len(readable):
        return []
    sizes = sizes[readable]
    elongation = sizes.max(axis=1) / sizes.min(axis=1)
    columns = [*measures[readable].T, elongation]
    faults = []
    for (name, kind), values in zip(_KINDS.items(), columns, strict=True):
        usual = np.quantile(values, kind.usual, method="higher")
        # As if low values were the faults.
        if kind.is_high:
            limit, sign = max(kind.bound, usual * kind.factor), -1
        else:
            limit, sign = min(kind.bound, usual / kind.factor), 1
        order = np.argsort(sign * values, kind="stable")
        faults += [
            Fault(int(readable[k]), name, float(values[k]))
            for k in order
            if sign * values[k] < sign * limit
        ]
    return faults
