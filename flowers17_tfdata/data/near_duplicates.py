"""Finds near-identical photographs.

A pair that straddles train and test makes the test accuracy a measure of
memory. The hash is dHash (N. Krawetz, "Kind of Like That", 2013): the signs of
horizontal brightness differences of a 16 x 17 thumbnail, 256 bits. It finds
copies, re-encoded copies, copies with a small border and, by the hash of the
mirrored thumbnail, mirror images; it doesn't find crops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.errors import UserError

# Out of 256 bits. Lies between the distances of copies in Oxford Flowers-17 (0
# to 4; with a border, 27) and that of its most similar pair of different
# photographs (69).
MAX_DISTANCE = 32

# A thumbnail with fewer sloping pixel pairs has no shape to compare: a blank
# image would match every other blank image.
_MIN_SLOPES = 64

# Distances are computed in blocks of this many images by that many: 64 MB.
_ROWS, _COLUMNS = 1024, 16384

# If more images than this have the same hash (a camera that did not move), only
# neighbours are paired: the group is the same, and a thousand copies do not
# become half a million pairs.
_MOST_COPIES = 32

# A longer list of pairs would fill the memory.
_MOST_PAIRS = 1_000_000


class NearDuplicate(NamedTuple):
    """The positions of two near-identical images, and their distance, bits."""

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


def find_near_duplicates(thumbnails: np.ndarray) -> list[NearDuplicate]:
    """Finds all pairs within `MAX_DISTANCE` bits, as they are or mirrored.

    If very many images have the same hash, only neighbours are paired.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].

    Returns:
      Pairs with `first < second`, sorted.
    """
    thumbnails = np.asarray(thumbnails, np.float32)
    slopes = np.abs(np.diff(thumbnails, axis=2)) >= 1
    textured = np.flatnonzero(slopes.sum(axis=(1, 2)) >= _MIN_SLOPES)
    bits = difference_hashes(thumbnails[textured])
    chosen, links = _without_crowds(bits)
    mirrored = difference_hashes(thumbnails[textured[chosen]][:, :, ::-1])
    best = dict.fromkeys(links, 0)
    for first, second, distance in _close_pairs(bits[chosen], mirrored):
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
    plain: np.ndarray, mirrored: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """Yields (first, second, distance), each pair once or twice.

    Args:
      plain: bool `[n, 256]`, the images' hashes.
      mirrored: bool `[n, 256]`, the hashes of their mirror images.
    """
    # The product of two rows of -1 and 1 is 256 - 2 * distance.
    plain, mirrored = (np.float32(2) * h - 1 for h in (plain, mirrored))
    least = 256 - 2 * MAX_DISTANCE
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


def _without_crowds(
    bits: np.ndarray,
) -> tuple[np.ndarray, Iterator[tuple[int, int]]]:
    """Keeps one image of each crowd of equal hashes.

    Args:
      bits: bool `[n, 256]`.

    Returns:
      The positions of the images kept, int `[k]`, and the pairs of neighbours
      in each crowd, (first, second), which join it to one group.
    """
    hashes = np.packbits(bits, axis=1).view("V32").ravel()
    _, value_of, counts = np.unique(
        hashes, return_inverse=True, return_counts=True
    )
    order = np.argsort(value_of, kind="stable")
    values = value_of[order]
    crowded = counts[values[1:]] > _MOST_COPIES
    links = np.flatnonzero(crowded & (values[1:] == values[:-1]))
    linked = order[links + 1]
    kept = np.setdiff1d(np.arange(len(bits)), linked)
    return kept, zip(order[links], linked, strict=True)
