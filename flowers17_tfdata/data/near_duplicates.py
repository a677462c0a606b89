"""Finds near-identical photographs.

A pair that straddles train and test makes the test accuracy a measure of
memory. The hash is dHash (N. Krawetz, "Kind of Like That", 2013): the signs of
horizontal brightness differences of a 16 x 17 thumbnail, 256 bits. It sees
copies, re-encodings, small borders and, hashed a second time, mirror images;
not crops.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Of 256 bits. Between the pairs of Oxford Flowers-17 that are copies (0 to 4;
# with a border, 27) and the nearest pair of different photographs (69).
MAX_DISTANCE = 32

# A thumbnail with fewer sloping pixel pairs has no shape to compare: a blank
# image would match every other blank image.
_MIN_SLOPES = 64

_ROWS_AT_ONCE = 1024


class NearDuplicate(NamedTuple):
    """Positions of two near-identical images, and how they differ in bits."""

    first: int
    second: int
    distance: int


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Returns dHash bits.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].

    Returns:
      bool `[n, 256]`.
    """
    bits = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return bits.reshape(len(thumbnails), 256)


def find_near_duplicates(
    thumbnails: np.ndarray, max_distance: int = MAX_DISTANCE
) -> list[NearDuplicate]:
    """Finds all pairs within `max_distance` bits, as they are or mirrored.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      max_distance: largest Hamming distance of a pair, of 256 bits.

    Returns:
      Pairs with `first < second`, sorted.
    """
    thumbnails = np.asarray(thumbnails, np.float32)
    slopes = np.abs(np.diff(thumbnails, axis=2)) >= 1
    textured = np.flatnonzero(slopes.sum(axis=(1, 2)) >= _MIN_SLOPES)
    shaped = thumbnails[textured]
    plain = difference_hashes(shaped).astype(np.float32)
    mirrored = difference_hashes(shaped[:, :, ::-1]).astype(np.float32)
    best: dict[tuple[int, int], int] = {}
    for start in range(0, len(textured), _ROWS_AT_ONCE):
        rows = plain[start : start + _ROWS_AT_ONCE]
        for other in (plain, mirrored):
            distances = _hamming(rows, other)
            for row, second in np.argwhere(distances <= max_distance):
                first = row + start
                if first >= second:
                    continue
                pair = int(textured[first]), int(textured[second])
                distance = round(float(distances[row, second]))
                best[pair] = min(best.get(pair, distance), distance)
    return [NearDuplicate(*pair, best[pair]) for pair in sorted(best)]


def _hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.sum(1)[:, None] + b.sum(1)[None] - 2 * a @ b.T
