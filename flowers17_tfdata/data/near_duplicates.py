"""Finds near-identical photographs.

A pair that straddles train and test makes the test accuracy a measure of
memory. The hash is dHash (N. Krawetz, "Kind of Like That", 2013): the signs of
horizontal brightness differences of a 16 x 17 thumbnail, 256 bits. It sees
copies, re-encodings, small borders and, hashed a second time, mirror images;
not crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.errors import UserError

# Of 256 bits. Between the pairs of Oxford Flowers-17 that are copies (0 to 4;
# with a border, 27) and the nearest pair of different photographs (69).
MAX_DISTANCE = 32

# A thumbnail with fewer sloping pixel pairs has no shape to compare: a blank
# image would match every other blank image.
_MIN_SLOPES = 64

# Distances are looked at in blocks of this many images by that many: 64 MB.
_ROWS, _COLUMNS = 1024, 16384

# Of more images than this with one and the same hash (a camera that did not
# move), only neighbours are paired: the group is the same, and a thousand
# copies are not half a million pairs.
_MOST_COPIES = 32


# More than these, and their list would fill the memory.
_MOST_PAIRS = 1_000_000


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

    Of a crowd of images with one and the same hash, neighbours alone are
    paired.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      max_distance: largest Hamming distance of a pair, of 256 bits.

    Returns:
      Pairs with `first < second`, sorted.
    """
    thumbnails = np.asarray(thumbnails, np.float32)
    slopes = np.abs(np.diff(thumbnails, axis=2)) >= 1
    textured = np.flatnonzero(slopes.sum(axis=(1, 2)) >= _MIN_SLOPES)
    bits = difference_hashes(thumbnails[textured])
    chosen, crowd = _without_crowds(np.packbits(bits, axis=1))
    plain = _signs(bits[chosen])
    mirrored = _signs(
        difference_hashes(thumbnails[textured[chosen]][:, :, ::-1])
    )
    best = dict.fromkeys(zip(*crowd, strict=True), 0)
    for first, second, distance in _close_pairs(plain, mirrored, max_distance):
        if len(best) > _MOST_PAIRS:
            raise UserError(
                f"more than {_MOST_PAIRS} pairs of images are nearly identical "
                "(frames of a film, a camera that did not move?): keep some "
                "of each series, and leave the others out"
            )
        pair = chosen[first], chosen[second]
        best[pair] = min(best.get(pair, distance), distance)
    return sorted(
        NearDuplicate(int(textured[a]), int(textured[b]), distance)
        for (a, b), distance in best.items()
    )


def _close_pairs(
    plain: np.ndarray, mirrored: np.ndarray, max_distance: int
) -> Iterator[tuple[int, int, int]]:
    """Yields (first, second, distance), a pair once or twice."""
    # The product of two rows of signs is 256 - 2 * distance.
    least = 256 - 2 * max_distance
    for top in range(0, len(plain), _ROWS):
        rows = plain[top : top + _ROWS]
        for left in range(top, len(plain), _COLUMNS):
            for others in (plain, mirrored):
                products = rows @ others[left : left + _COLUMNS].T
                for row, column in np.argwhere(products >= least):
                    first, second = int(row) + top, int(column) + left
                    if first < second:
                        bits = (256 - int(products[row, column])) // 2
                        yield first, second, bits


def _signs(bits: np.ndarray) -> np.ndarray:
    """Returns bits as -1 and 1, float32 `[n, 256]`."""
    return bits.astype(np.float32) * 2 - 1


def _without_crowds(packed: np.ndarray):
    """Leaves one of each crowd of equal hashes.

    Args:
      packed: uint8 `[n, 32]`.

    Returns:
      positions of those that are left, and the (first, second) of the pairs
      that link each of the others to the one before it: int `[k]` each.
    """
    if not len(packed):
        return np.arange(0), (np.arange(0), np.arange(0))
    values = np.ascontiguousarray(packed).view("V32").ravel()
    _, value_of, counts = np.unique(
        values, return_inverse=True, return_counts=True
    )
    order = np.argsort(value_of, kind="stable")
    crowded = counts[value_of[order]] > _MOST_COPIES
    links = np.flatnonzero(
        crowded[1:] & (value_of[order[1:]] == value_of[order[:-1]])
    )
    linked = order[links + 1]
    left = np.setdiff1d(np.arange(len(packed)), linked)
    return left, (order[links], linked)
