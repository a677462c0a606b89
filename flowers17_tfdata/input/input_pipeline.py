"""The way from images to batches: one pipeline for training, one to evaluate.

Both first compute indices (which examples form which replica's batch), then
pixels (read, augment, normalize). The order of an epoch is a pure function of
(seed, epoch), and the augmentation of an image one of (seed, epoch, index). So
the batches are the same on any number of replicas, and after a restart.

Pixels stay uint8 until the last step. On the host, OpenCV resamples them, and
one fused operation normalizes them and casts them to the compute dtype. An
accelerator receives uint8 images and their transforms, and `make_device_stage`
does the same there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.input import augmentation
from flowers17_tfdata.input.examples import Examples

# The batches that wait while one is trained on. Not tf.data.AUTOTUNE, whose
# teardown at the end of an epoch can stall for tens of seconds.
_PREFETCHED_BATCHES = 2

# More batches in the making would cost more memory than they bring speed.
_MOST_THREADS = 16

# Makes the random stream of the order independent of the augmentation's.
_ORDER_STREAM = 1


class Batch(NamedTuple):
    """The input of one replica for one step.

    Attributes:
      inputs: images `[batch, image_size, image_size, 3]` in the backbone's
        range, or features `[batch, channels]`, in the model's compute dtype. If
        the device augments: uint8 images in [0, 255].
      labels: int64 `[batch]`, the classes.
      weights: float32 `[batch]`, the weight of each example in the loss: 1, or
        in training the weight of its class; 0 for an example that only fills
        the last batch.
      transforms: float32 `[batch, 8]`, which the device must still apply to
        `inputs` (see `RandomAffine.draw`), or `[batch, 0]`.
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    transforms: tf.Tensor


def resolve_augment_on(config: InputConfig) -> str:
    """Resolves `--augment_on=auto` to `device` (on a GPU) or `host`."""
    if config.augment_on != "auto":
        return config.augment_on
    return "device" if tf.config.list_physical_devices("GPU") else "host"


def make_normalize(
    preprocess: Callable[[tf.Tensor], tf.Tensor], compute_dtype: str
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that normalizes and casts images.

    Args:
      preprocess: from float32 in [0, 255] to the backbone's range.
      compute_dtype: the dtype of the result.

    Returns:
      A function of images in [0, 255], uint8 or float32. It is compiled into
      one loop: separate operations would each read and write the whole batch.
    """

    @tf.function(jit_compile=True)
    def normalize(images):
        return tf.cast(preprocess(tf.cast(images, tf.float32)), compute_dtype)

    return normalize


def make_device_stage(
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    compute_dtype: str = "float32",
) -> Callable[[Batch], tf.Tensor]:
    """Returns the part of the pipeline that runs on the device.

    Args:
      config: the options of the input pipeline.
      preprocess: from float32 in [0, 255] to the backbone's range.
      compute_dtype: the compute dtype of the model.

    Returns:
      A function from a `Batch` to the model's inputs.
    """
    if resolve_augment_on(config) == "host":
        return lambda batch: batch.inputs
    affine, size = augmentation.make_affine(config), config.train_image_size
    normalize = make_normalize(preprocess, compute_dtype)

    def finish(batch: Batch) -> tf.Tensor:
        images = batch.inputs
        if batch.transforms.shape[-1]:
            # The op keeps the size of the images. A reduced image fills the
            # top left corner.
            images = affine(images, batch.transforms)[:, :size, :size]
        return normalize(images)

    return finish


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Returns the number of batches that it takes to hold every example."""
    return -(-num_examples // global_batch_size)


def make_train_dataset(
    examples: Examples,
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    global_batch_size: int,
    seed: int,
    compute_dtype: str = "float32",
    initial_epoch: int = 0,
    initial_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    class_weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Makes the infinite training pipeline.

    It shuffles, then repeats: an epoch holds every example exactly once, and
    examples of weight 0 fill its last batch.

    Args:
      examples: the examples to train on.
      config: the options of the input pipeline.
      preprocess: from float32 in [0, 255] to the backbone's range.
      global_batch_size: images per step over all replicas.
      seed: the seed of the order and of the augmentation.
      compute_dtype: the compute dtype of the model.
      initial_epoch: the first epoch to produce, for a resumed run.
      initial_step: the number of steps of that epoch to skip.
      input_context: the place of this worker; None: it is the only one, with
        one replica.
      class_weights: see `weigh_classes`.

    Returns:
      A dataset of `Batch`. Each element is the batch of one replica for one
      step; the replicas of this worker take turns.
    """
    plan = make_epoch_plan(
        examples.num_examples,
        config,
        global_batch_size=global_batch_size,
        seed=seed,
        input_context=input_context,
    )
    make_batch = _batch_maker(examples, config, preprocess, compute_dtype)

    def make_train_batch(indices, weights, transforms) -> Batch:
        batch = make_batch(indices, weights, transforms)
        return weigh_classes(batch, class_weights)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(plan(epoch))

    batches = from_step(
        epoch_batches, initial_epoch, initial_step, input_context
    )
    return finish(batches, make_train_batch)


def weigh_classes(batch: Batch, class_weights: np.ndarray | None) -> Batch:
    """Multiplies the weight of each example by that of its class.

    Args:
      batch: a training batch.
      class_weights: float32 `[num_classes]`; None: 1 for all classes.
    """
    if class_weights is None:
        return batch
    weights = tf.gather(tf.constant(class_weights), batch.labels)
    return batch._replace(weights=batch.weights * weights)


def make_epoch_plan(
    num_examples: int,
    config: InputConfig,
    *,
    global_batch_size: int,
    seed: int,
    input_context: tf.distribute.InputContext | None,
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns the function that plans an epoch of training.

    Args:
      num_examples: the number of training examples.
      config: the options of the input pipeline.
      global_batch_size: images per step over all replicas.
      seed: the seed of the order and of the augmentation.
      input_context: the place of this worker; None: it is the only one, with
        one replica.

    Returns:
      A function from an epoch (int64 scalar) to this worker's batches: indices
      int64 `[batches, batch]`, and their weights and transforms, see `Batch`.
    """
    reduced = config.image_size / config.train_image_size

    def plan(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        order = epoch_order(num_examples, seed, epoch)
        indices, weights = replica_batches(
            order, global_batch_size, input_context
        )
        if config.augmentation == "affine":
            drawn = augmentation.draw_transforms(
                config, seed, epoch, num_examples
            )
        elif reduced != 1:
            drawn = tf.tile(
                augmentation.IDENTITY[np.newaxis], [num_examples, 1]
            )
            drawn = augmentation.before_resize(drawn, reduced)
        else:
            drawn = tf.zeros([num_examples, 0])
        return indices, weights, tf.gather(drawn, indices)

    return plan


def from_step(
    epoch_batches: Callable[[tf.Tensor], tf.data.Dataset],
    initial_epoch: int,
    initial_step: int,
    context: tf.distribute.InputContext | None,
) -> tf.data.Dataset:
    """Concatenates all epochs from a given step on.

    Args:
      epoch_batches: from an epoch (int64 scalar) to this worker's batches.
      initial_epoch: the first epoch.
      initial_step: the number of steps of that epoch to skip.
      context: the place of this worker; None: it is the only one, with one
        replica.
    """
    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int64).max)
    batches = epochs.flat_map(epoch_batches)
    replicas = 1
    if context:
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
    # No pixels have been read yet, so skipping costs next to nothing.
    batches = batches.skip(initial_step * replicas)
    # Marks the dataset as infinite. Otherwise, with several workers, TensorFlow
    # synchronises them at every step to ask whether any has run out.
    return batches.apply(
        tf.data.experimental.assert_cardinality(
            tf.data.experimental.INFINITE_CARDINALITY
        )
    )


def make_eval_dataset(
    examples: Examples,
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    global_batch_size: int,
    compute_dtype: str = "float32",
    transforms: tf.Tensor | None = None,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Makes the evaluation pipeline: one pass, in order.

    Examples of weight 0 fill the last step up to whole batches on all replicas.

    Args:
      examples: the examples.
      config: the options of the input pipeline.
      preprocess: from float32 in [0, 255] to the backbone's range.
      global_batch_size: images per step over all replicas.
      compute_dtype: the compute dtype of the model.
      transforms: float32 `[num_examples, 8]`, see `RandomAffine.draw`; None:
        the images themselves.
      input_context: the place of this worker; None: it is the only one, with
        one replica.

    Returns:
      A dataset of `Batch`, like that of `make_train_dataset`.
    """
    num_examples = examples.num_examples
    if transforms is None:
        transforms = tf.zeros([num_examples, 0])
    rows, weights = replica_batches(
        tf.range(num_examples, dtype=tf.int64),
        global_batch_size,
        input_context,
    )
    batches = tf.data.Dataset.from_tensor_slices(
        (rows, weights, tf.gather(transforms, rows))
    )
    make_batch = _batch_maker(examples, config, preprocess, compute_dtype)
    return finish(batches, make_batch)


def _batch_maker(examples, config, preprocess, compute_dtype):
    """Returns `make_batch(indices, weights, transforms) -> Batch`."""
    labels = tf.constant(examples.labels)
    on_host = resolve_augment_on(config) == "host"
    normalize = make_normalize(preprocess, compute_dtype)

    def make_batch(indices, weights, transforms) -> Batch:
        # Python, but for microseconds per image: the decoder and OpenCV
        # release the GIL.
        resamples = on_host and bool(transforms.shape[1])
        size = config.train_image_size if resamples else config.image_size

        def read(indices, transforms):
            if resamples:
                return examples.images.resample(indices, transforms, size)
            return examples.images.read(indices)

        images = tf.numpy_function(
            read, [indices, transforms], tf.uint8, stateful=False
        )
        images = tf.ensure_shape(images, [indices.shape[0], size, size, 3])
        if on_host:
            images = normalize(images)
            transforms = tf.zeros([indices.shape[0], 0])
        return Batch(images, tf.gather(labels, indices), weights, transforms)

    return make_batch


def epoch_order(num_examples: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the order of an epoch: a permutation, int64 `[num_examples]`."""
    return tf.random.experimental.stateless_shuffle(
        tf.range(num_examples, dtype=tf.int64),
        seed=tf.stack([tf.cast(seed + _ORDER_STREAM * 2**32, tf.int64), epoch]),
    )


def replica_batches(
    order: tf.Tensor,
    global_batch_size: int,
    context: tf.distribute.InputContext | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Divides an epoch into the batches of this worker's replicas.

    Args:
      order: int64 `[num_examples]`, the order of the epoch.
      global_batch_size: images per step over all replicas.
      context: the place of this worker; None: it is the only one, with one
        replica.

    Returns:
      Indices, int64, and weights, float32, both
      `[steps * replicas of this worker, per-replica batch size]`.
    """
    replicas = context.num_replicas_in_sync if context else 1
    workers = context.num_input_pipelines if context else 1
    worker = context.input_pipeline_id if context else 0
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


def finish(batches: tf.data.Dataset, make_batch: Callable) -> tf.data.Dataset:
    """Makes a batch of each element, in parallel and in order."""
    threads = min(_MOST_THREADS, machine.num_cores())
    batches = batches.map(make_batch, num_parallel_calls=threads)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    # The indices are sharded already: sharding again would drop examples.
    off = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = off
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(options)
