"""Runs the model on image files, each as one or several augmented views."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.data import decode
from flowers17_tfdata.input import augmentation, examples, input_pipeline
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.trained_model import TrainedModel


def predict_files(
    config: Config, trained: TrainedModel, paths: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Classifies image files, in order.

    Args:
      config: `--tta`, the augmentation that draws its views, the batch size.
      trained: the model.
      paths: the images' paths.

    Yields:
      `(path, probabilities, error)`: float32 `[num_classes]`, the mean over
      the views; why the image can't be read, or ''.
    """
    size, num_views = trained.image_size, config.evaluation.tta
    options = dataclasses.replace(config.input, image_size=size)
    batches = read_views(
        paths,
        size,
        augmentation.draw_views(options, num_views),
        batch_size=max(1, config.optimization.global_batch_size // num_views),
    )
    normalize = input_pipeline.make_normalize(
        trained.preprocess, keras.config.dtype_policy().compute_dtype
    )

    # Any batch size: the last batch, which is smaller, needs no second trace.
    @tf.function(
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)]
    )
    def forward(images):
        return trained.model(normalize(images), training=False)

    for names, pixels, errors in batches.as_numpy_iterator():
        logits = forward(pixels.reshape(-1, *pixels.shape[2:])).numpy()
        probabilities = softmax(logits).reshape(*pixels.shape[:2], -1)
        for name, row, error in zip(
            names, probabilities.mean(axis=1), errors, strict=True
        ):
            yield os.fsdecode(name), row, error.decode()


def read_views(
    paths: Sequence[str],
    image_size: int,
    transforms: np.ndarray,
    *,
    batch_size: int,
) -> tf.data.Dataset:
    """Reads and decodes images in parallel and in order.

    Args:
      paths: the images' paths.
      image_size: height and width that the model takes, pixels.
      transforms: the further views, see `augmentation.draw_views`.
      batch_size: images per batch.

    Returns:
      Dataset of `(path, pixels, error)`: strings `[batch]`; uint8 `[batch,
      views, image_size, image_size, 3]` in [0, 255]; strings `[batch]`, why an
      image can't be read (its pixels are 0), or ''. The last batch may be
      smaller.
    """

    def load(path: bytes) -> tuple[bytes, np.ndarray, str]:
        shape = [1 + len(transforms), image_size, image_size, 3]
        views = np.zeros(shape, np.uint8)
        try:
            with open(path, "rb") as file:
                encoded = decode.upright(file.read())
            views[0] = decode.decode_and_resize(
                tf.constant(encoded), image_size
            )
        except OSError as error:
            return path, views, error.strerror or str(error)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            return path, views, decode.decoder_message(error)
        for view, transform in zip(views[1:], transforms, strict=True):
            examples.warp_affine(views[0], transform, out=view)
        return path, views, ""

    def load_in_graph(path: tf.Tensor) -> tuple[tf.Tensor, ...]:
        types = (tf.string, tf.uint8, tf.string)
        return tuple(tf.numpy_function(load, [path], types, stateful=False))

    # Bytes: names need not be UTF-8.
    names = tf.constant([os.fsencode(path) for path in paths], tf.string)
    images = tf.data.Dataset.from_tensor_slices(names).map(
        load_in_graph, num_parallel_calls=machine.num_cores()
    )
    return input_pipeline.prefetch(images.batch(batch_size))
