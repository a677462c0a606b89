"""Reads images of a split, and encodes images for the page."""

from __future__ import annotations

import base64
from collections.abc import Collection

import cv2
import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError

_JPEG_QUALITY = 82


def read_encoded(
    source: Source, split: str, positions: Collection[int]
) -> dict[int, bytes]:
    """Reads some images of a split, rotated upright and still encoded.

    Args:
      source: the data set.
      split: the split's name.
      positions: positions in the split's stored order.

    Returns:
      `{position: JPEG or PNG}`.

    Raises:
      UserError: an image file was damaged since it was evaluated.
    """
    if not positions:
        return {}
    examples = source.read(split).take(max(positions) + 1)
    found = {}
    for position, example in enumerate(examples.as_numpy_iterator()):
        if position in positions:
            try:
                found[position] = decode.upright(example["image"])
            except ValueError as error:
                raise UserError(
                    f"{source.name}, split {split}: {example['id'].decode()} "
                    f"can't be decoded any more ({error})"
                ) from error
    return found


def to_data_uri(image: np.ndarray, max_side: int) -> str:
    """Returns a thumbnail as `data:image/jpeg;base64,...`.

    Args:
      image: uint8 `[height, width, 3]`, RGB.
      max_side: the thumbnail's longer side in pixels; smaller images keep
        their size.
    """
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(
        ".jpg",
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
    )
    text = base64.b64encode(encoded.tobytes()).decode("ascii")
    return f"data:image/jpeg;base64,{text}"
