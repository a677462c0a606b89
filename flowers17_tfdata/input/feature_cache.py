"""The cached features of the frozen backbone, and pipelines over them."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.input_pipeline import Batch


class Features(NamedTuple):
    """The features of a split.

    Attributes:
      values: float32 `[views, n, channels]`; view 0 is the image itself.
      labels: int64 `[n]`, the classes.
    """

    values: np.ndarray
    labels: np.ndarray


def cache_key(parts: dict[str, Any]) -> str:
    """Returns a hash of all that the features depend on, 32 hex digits."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Reads arrays from an `.npz` file.

    Returns:
      The arrays, or None if the file is missing or damaged.
    """
    try:
        return files.read_arrays(path)
    # Missing, or damaged in any way: it can be computed again.
    except Exception:
        return None


def make_train_dataset(
    features: Features,
    *,
    global_batch_size: int,
    seed: int,
    initial_epoch: int = 0,
    initial_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    class_weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Makes the infinite training pipeline over features.

    The order and the padding are those of `input_pipeline.make_train_dataset`.
    Each epoch uses one view of an example, the next epoch its next view.

    Args:
      features: the features to train on.
      global_batch_size: examples per step over all replicas.
      seed: the seed of the order.
      initial_epoch: the first epoch to produce, for a resumed run.
      initial_step: the number of steps of that epoch to skip.
      input_context: the place of this worker; None: it is the only one, with
        one replica.
      class_weights: see `input_pipeline.weigh_classes`.

    Returns:
      A dataset of `Batch` with inputs float32 `[batch, channels]`.
    """
    num_views, num_examples, _ = features.values.shape

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = input_pipeline.epoch_order(num_examples, seed, epoch)
        indices, weights = input_pipeline.replica_batches(
            order, global_batch_size, input_context
        )
        views = (indices + epoch) % num_views
        return tf.data.Dataset.from_tensor_slices((views, indices, weights))

    batches = input_pipeline.from_step(
        epoch_batches, initial_epoch, initial_step, input_context
    )
    make_batch = _batch_maker(features)

    def make_train_batch(*share) -> Batch:
        return input_pipeline.weigh_classes(make_batch(*share), class_weights)

    return input_pipeline.finish(batches, make_train_batch)


def make_eval_dataset(
    features: Features,
    *,
    global_batch_size: int,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Makes one pass over view 0, in order.

    Examples of weight 0 fill the last step. The arguments and the result are
    those of `make_train_dataset`.
    """
    indices, weights = input_pipeline.replica_batches(
        tf.range(len(features.labels), dtype=tf.int64),
        global_batch_size,
        input_context,
    )
    batches = tf.data.Dataset.from_tensor_slices(
        (tf.zeros_like(indices), indices, weights)
    )
    return input_pipeline.finish(batches, _batch_maker(features))


def _batch_maker(features: Features):
    # On a GPU, the constants would take its memory.
    with tf.device("CPU:0"):
        values = tf.constant(features.values)
        labels = tf.constant(features.labels)

    def make_batch(views, indices, weights) -> Batch:
        return Batch(
            tf.gather_nd(values, tf.stack([views, indices], axis=-1)),
            tf.gather(labels, indices),
            weights,
            tf.zeros([indices.shape[0], 0]),
        )

    return make_batch
