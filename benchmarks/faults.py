"""Measures which faults the audit finds in damaged copies of photographs.

    python benchmarks/faults.py --archive=17flowers.tgz

Prints the faults that are listed among the photographs themselves, and the
share of copies of every fourth one in which each kind of damage is found.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator

import cv2
import numpy as np

from flowers17_tfdata.data import decode, faults
from flowers17_tfdata.data.oxford_flowers17 import archive

# The standard deviation of a blur, percent of the shorter side; factors of the
# gray levels.
_BLURS = (0.5, 0.75, 1, 2, 4)
_FACTORS = (0.1, 0.15, 0.3, 2, 3, 4)


def _damaged(image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what was done to an image, and the result as a JPEG shows it."""
    side = min(image.shape[:2])
    for percent in _BLURS:
        blurred = cv2.GaussianBlur(image, (0, 0), side * percent / 100)
        yield f"blur {percent} %", _saved(blurred)
    for factor in _FACTORS:
        levels = np.minimum(np.float32(factor) * image, 255).round()
        yield f"levels x {factor}", _saved(levels.astype(np.uint8))
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    yield "gray", _saved(np.dstack([gray] * 3))


def _saved(image: np.ndarray) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90]
    encoded = cv2.imencode(".jpg", image[..., ::-1], options)[1]
    return decode.read(encoded.tobytes()).pixels


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", required=True)
    files = archive.read_archive(parser.parse_args().archive)
    rows, sizes = [], []
    copies: dict[str, list[tuple[np.ndarray, tuple[int, ...]]]] = {}
    for k, encoded in enumerate(files.values()):
        image = decode.read(encoded).pixels
        rows.append(faults.measure(image))
        sizes.append(image.shape[:2])
        for damage, copy in _damaged(image) if k % 4 == 0 else ():
            row = faults.measure(copy), copy.shape[:2]
            copies.setdefault(damage, []).append(row)
    names = list(files)
    for fault in faults.find(np.array(rows), np.array(sizes)):
        print(f"{names[fault.position]}: {fault.kind}, {fault.value:.2f}")
    for damage, found in copies.items():
        more, more_sizes = zip(*found, strict=True)
        listed = faults.find(
            np.array([*rows, *more]), np.array([*sizes, *more_sizes])
        )
        counts = collections.Counter(
            fault.kind for fault in listed if fault.position >= len(rows)
        )
        shares = ", ".join(
            f"{kind} {n / len(found):.1%}" for kind, n in counts.items()
        )
        print(f"{damage}: {shares}")


if __name__ == "__main__":
    main()
