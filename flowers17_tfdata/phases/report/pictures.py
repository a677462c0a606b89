"""Pictures of a split, as the page embeds them."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError

_JPEG_QUALITY = 82


class Picture(NamedTuple):
    """A picture in the page.

    Attributes:
      uri: `data:image/jpeg;base64,...`.
      width: pixels.
      height: pixels.
    """

    uri: str
    width: int
    height: int


def read_encoded(
    source: Source, split: str, positions: Collection[int]
) -> dict[int, bytes]:
    """Reads some images of a split, upright and still encoded.

    Args:
      source: the data set.
      split: of it.
      positions: in its stored order.

    Returns:
      `{position: JPEG, PNG, BMP or GIF}`.

    Raises:
      UserError: no such split, or an image has no header.
    """
    wanted, found = set(positions), {}
    if not wanted:
        return found
    examples = source.read(split).take(max(wanted) + 1)
    for position, example in enumerate(examples.as_numpy_iterator()):
        if position not in wanted:
            continue
        try:
            found[position] = decode.upright(example["image"])
        except ValueError as error:
            raise UserError(
                f"{source.name}, split {split}: {example['id'].decode()} "
                f"can't be decoded ({error})"
            ) from error
    return found


def from_encoded(encoded: bytes, max_side: int) -> Picture:
    """Returns a thumbnail with the picture's own aspect ratio.

    Args:
      encoded: JPEG, PNG, BMP or GIF.
      max_side: of the thumbnail, pixels; smaller pictures stay as they are.
    """
    return from_pixels(decode.decode_reduced(encoded, 1), max_side)


def from_pixels(image: np.ndarray, max_side: int) -> Picture:
    """Returns a thumbnail.

    Args:
      image: uint8 `[height, width, 3]`, RGB.
      max_side: of the thumbnail, pixels; smaller pictures stay as they are.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale < 1:
        height = max(1, round(height * scale))
        width = max(1, round(width * scale))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(
        ".jpg",
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    )
    text = base64.b64encode(encoded).decode("ascii")
    return Picture("data:image/jpeg;base64," + text, width, height)
