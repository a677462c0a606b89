"""Photographs as a model sees them, one view each or several."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.data import decode
from flowers17_tfdata.input import examples, input_pipeline


def make_dataset(
    paths: Iterator[str],
    image_size: int,
    transforms: np.ndarray,
    *,
    batch_size: int,
) -> tf.data.Dataset:
    """Reads and decodes images in parallel, in order, as they are named.

    Args:
      paths: of the images.
      image_size: height and width that the model takes, pixels.
      transforms: of the further views, see `augmentation.draw_views`.
      batch_size: images a batch.

    Returns:
      Dataset of `(path, pixels, error)`: strings `[batch]`; uint8 `[batch,
      views, image_size, image_size, 3]` in [0, 255]; strings, why an image
      can't be read (its pixels are 0), or empty. The last batch is smaller.
    """
    size, num_views = image_size, len(transforms) + 1

    def load(path: bytes):
        views = np.zeros([num_views, size, size, 3], np.uint8)
        try:
            with open(path, "rb") as file:
                encoded = decode.upright(file.read())
            views[0] = decode.decode_and_resize(tf.constant(encoded), size)
        except OSError as error:
            return path, views, error.strerror or str(error)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            return path, views, decode.decoder_message(error)
        for view, transform in zip(views[1:], transforms, strict=True):
            examples.warp_affine(views[0], transform, out=view)
        return path, views, ""

    def load_in_graph(path):
        path, views, error = tf.numpy_function(
            load, [path], (tf.string, tf.uint8, tf.string), stateful=False
        )
        return (
            tf.ensure_shape(path, []),
            tf.ensure_shape(views, [num_views, size, size, 3]),
            tf.ensure_shape(error, []),
        )

    images = tf.data.Dataset.from_generator(
        # Bytes: names need not be UTF-8.
        lambda: map(os.fsencode, paths),
        output_signature=tf.TensorSpec([], tf.string),
    )
    images = images.map(load_in_graph, num_parallel_calls=machine.num_cores())
    return input_pipeline.prefetch(images.batch(batch_size))
