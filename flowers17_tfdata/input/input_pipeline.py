"""The two input pipelines: one for training, one for evaluation.

Both are index arithmetic first (which examples make up which replica's batch)
and pixels second (gather, augment, normalize). The order of an epoch is a pure
function of (seed, epoch), an image's augmentation one of (seed, epoch, index):
the same batches on any number of replicas, and after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config import InputConfig
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.sources import Source
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import augmentation

# Two batches in the making while one is trained on. Not tf.data.AUTOTUNE: its
# teardown at an epoch's end can stall for tens of seconds.
_PARALLEL_BATCHES = 2
_PREFETCHED_BATCHES = 2

# Keeps the order's random stream apart from the augmentation's.
_ORDER_STREAM = 1


class Examples(NamedTuple):
    """A split in memory.

    Attributes:
      images: uint8 `[n, image_size, image_size, 3]` in [0, 255] if cached,
        else string `[n]`, still encoded.
      labels: int64 `[n]`.
    """

    images: tf.Tensor
    labels: tf.Tensor

    @property
    def num_examples(self) -> int:
        return int(self.labels.shape[0])


class Batch(NamedTuple):
    """What one replica gets for one step.

    Attributes:
      images: float32 `[batch, image_size, image_size, 3]`, in the range that
        the backbone expects.
      labels: int64 `[batch]`.
      weights: float32 `[batch]`: 1, or 0 for an example that only pads the
        last batch.
    """

    images: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor


def load_examples(source: Source, split: str, config: InputConfig) -> Examples:
    """Reads a split; decodes and resizes it once if it is to be cached.

    Raises:
      UserError: an image can't be decoded, or the split is empty.
    """
    ids, labels, encoded = [], [], []
    for example in source.read(split).as_numpy_iterator():
        ids.append(example["id"])
        labels.append(example["label"])
        encoded.append(example["image"])
    if not ids:
        raise UserError(f"{source.name} has no examples in split {split!r}")
    if config.cache == "none":
        errors = decode.make_thumbnails(encoded).errors
        if errors:
            raise _undecodable(source, split, ids, errors)
        return _on_host(encoded, labels)
    size = config.image_size
    images = np.empty([len(ids), size, size, 3], np.uint8)
    resized = tf.data.Dataset.from_tensor_slices(encoded).map(
        lambda data: decode.decode_and_resize(data, size),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    try:
        for position, image in enumerate(resized.as_numpy_iterator()):
            images[position] = image
    except tf.errors.InvalidArgumentError as error:
        errors = decode.make_thumbnails(encoded).errors
        if not errors:
            raise
        raise _undecodable(source, split, ids, errors) from error
    return _on_host(images, labels)


def _on_host(images, labels) -> Examples:
    # Where there is a GPU, a constant would land in its memory.
    with tf.device("CPU:0"):
        return Examples(tf.constant(images), tf.constant(labels, tf.int64))


def _undecodable(source, split, ids, errors) -> UserError:
    position, message = min(errors.items())
    return UserError(
        f"{source.name}, split {split}: {ids[position].decode()} can't be "
        f"decoded ({message}); --phase=prepare lists all such files"
    )


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Returns the number of batches that hold every example once."""
    return -(-num_examples // global_batch_size)


def make_train_dataset(
    examples: Examples,
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    global_batch_size: int,
    seed: int,
    initial_epoch: int = 0,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Makes the endless training pipeline.

    Shuffle, then repeat: an epoch holds every example exactly once; where the
    batch size does not divide their number, examples of weight 0 fill the
    epoch's last batch.

    Args:
      examples: the train split.
      config: image size and augmentation.
      preprocess: from float32 in [0, 255] to the backbone's range.
      global_batch_size: images a step over all replicas.
      seed: of order and augmentation.
      initial_epoch: the first epoch to produce, for a resumed run.
      input_context: which of how many replicas; None: one replica, all of it.

    Returns:
      Dataset of `Batch`, one replica's share of a step each, the replicas of
      this worker in turn.
    """
    num_examples = examples.num_examples
    augment = augmentation.make_augmentation(config)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(num_examples, dtype=tf.int64),
            seed=tf.stack(
                [tf.cast(seed + _ORDER_STREAM * 2**32, tf.int64), epoch]
            ),
        )
        indices, weights = _replica_batches(
            order, global_batch_size, input_context
        )
        return tf.data.Dataset.from_tensor_slices((indices, weights)).map(
            lambda i, w: (epoch, i, w)
        )

    def make_batch(epoch, indices, weights) -> Batch:
        images = _gather_images(examples, indices, config.image_size)
        images = augment(images, seed, epoch, indices)
        return Batch(
            preprocess(images), tf.gather(examples.labels, indices), weights
        )

    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int64).max)
    return _finish(epochs.flat_map(epoch_batches), make_batch)


def make_eval_dataset(
    examples: Examples,
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    global_batch_size: int,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Makes the evaluation pipeline: one pass, in order, not augmented.

    Every example has weight 1 exactly once; examples of weight 0 fill the last
    step up to whole batches on every replica.

    Args:
      examples: the split.
      config: image size.
      preprocess: from float32 in [0, 255] to the backbone's range.
      global_batch_size: images a step over all replicas.
      input_context: which of how many replicas; None: one replica, all of it.

    Returns:
      Dataset of `Batch`, as `make_train_dataset`.
    """
    order = tf.range(examples.num_examples, dtype=tf.int64)
    batches = tf.data.Dataset.from_tensor_slices(
        _replica_batches(order, global_batch_size, input_context)
    )

    def make_batch(indices, weights) -> Batch:
        images = _gather_images(examples, indices, config.image_size)
        return Batch(
            preprocess(tf.cast(images, tf.float32)),
            tf.gather(examples.labels, indices),
            weights,
        )

    return _finish(batches, make_batch)


def _replica_batches(
    order: tf.Tensor,
    global_batch_size: int,
    context: tf.distribute.InputContext | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts an epoch's order into this worker's replica batches.

    Returns:
      indices int64 and weights float32, both
      `[steps * replicas of this worker, per-replica batch size]`.
    """
    replicas = context.num_replicas_in_sync if context else 1
    workers = context.num_input_pipelines if context else 1
    worker = context.input_pipeline_id if context else 0
    if global_batch_size % replicas:
        raise UserError(
            "--global_batch_size must be a multiple of the number of replicas "
            f"({replicas}); got {global_batch_size}"
        )
    num_examples = tf.size(order, tf.int64)
    steps = steps_per_epoch(int(order.shape[0]), global_batch_size)
    position = tf.range(steps * global_batch_size, dtype=tf.int64)
    shape = [steps, workers, -1, global_batch_size // replicas]
    indices = tf.reshape(tf.gather(order, position % num_examples), shape)
    weights = tf.reshape(tf.cast(position < num_examples, tf.float32), shape)
    share = [-1, global_batch_size // replicas]
    return (
        tf.reshape(indices[:, worker], share),
        tf.reshape(weights[:, worker], share),
    )


def _gather_images(
    examples: Examples, indices: tf.Tensor, image_size: int
) -> tf.Tensor:
    images = tf.gather(examples.images, indices)
    if images.dtype == tf.string:
        images = tf.map_fn(
            lambda data: decode.decode_and_resize(data, image_size),
            images,
            fn_output_signature=tf.TensorSpec(
                [image_size, image_size, 3], tf.uint8
            ),
        )
    return images


def _finish(batches: tf.data.Dataset, make_batch) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    # Sharding is done above, by replica; a second one would drop examples.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return (
        batches.map(make_batch, num_parallel_calls=_PARALLEL_BATCHES)
        .prefetch(_PREFETCHED_BATCHES)
        .with_options(options)
    )
