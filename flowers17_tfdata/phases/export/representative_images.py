"""The images that the ranges of an int8 model are measured on."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source

# Each takes the converter most of a second for an InceptionV3.
NUM_IMAGES = 128


def choose_files(
    source: Source, split: str, num_images: int = NUM_IMAGES
) -> list[bytes]:
    """Takes as many images of every class, the first in the split's order.

    Args:
      source: the data set.
      split: of it.
      num_images: in all; fewer where the split has no more.

    Returns:
      Encoded images.
    """
    quota = math.ceil(num_images / len(source.class_names))
    taken: collections.Counter[int] = collections.Counter()
    files: list[bytes] = []
    for example in source.read(split):
        label = int(example["label"])
        if taken[label] < quota:
            taken[label] += 1
            files.append(example["image"].numpy())
        if len(files) == num_images:
            break
    return files


def calibration_images(
    source: Source, split: str, image_size: int
) -> Iterator[np.ndarray]:
    """Yields uint8 `[image_size, image_size, 3]`, as evaluation sees them."""
    files = choose_files(source, split)
    with terminal.EpochProgress("calibration", len(files)) as progress:
        for encoded in files:
            upright = tf.constant(decode.upright(encoded))
            yield decode.decode_and_resize(upright, image_size).numpy()
            progress.advance()
