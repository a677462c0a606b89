"""The two input pipelines: one for training, one for evaluation.

Both are index arithmetic first (which examples make up which replica's batch)
and pixels second (read, augment, normalize). The order of an epoch is a pure
function of (seed, epoch), an image's augmentation one of (seed, epoch, index):
the same batches on any number of replicas, and after a restart.

Pixels stay uint8 to the last: on the host OpenCV resamples them and one fused
pass normalizes them and casts them to the compute dtype; for an accelerator
they leave as uint8, with their transforms, and `make_device_stage` does both
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.config import InputConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import augmentation
from flowers17_tfdata.input.examples import Examples

# Ready while one is trained on. Not tf.data.AUTOTUNE: its teardown at an
# epoch's end can stall for tens of seconds.
_PREFETCHED_BATCHES = 2

# A transform that leaves images as they are.
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)

# Keeps the order's random stream apart from the augmentation's.
_ORDER_STREAM = 1


class Batch(NamedTuple):
    """What one replica gets for one step.

    Attributes:
      inputs: what the model takes, in its compute dtype: images `[batch,
        image_size, image_size, 3]` in the backbone's range, or features
        `[batch, channels]`. Where the device augments: uint8 images in
        [0, 255].
      labels: int64 `[batch]`.
      weights: float32 `[batch]`: of the examples' losses: 1, or in training
        its class's; 0 for an example that only pads the last batch.
      transforms: float32 `[batch, 8 or 20]`, still to be applied to `inputs`
        (see `augmentation.draw_transforms`), or `[batch, 0]`.
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    transforms: tf.Tensor


def resolve_augment_on(config: InputConfig) -> str:
    """Turns `--augment_on=auto` into `device` (a GPU) or `host`."""
    if config.augment_on != "auto":
        return config.augment_on
    return "device" if tf.config.list_physical_devices("GPU") else "host"


def make_normalize(
    preprocess: Callable[[tf.Tensor], tf.Tensor], compute_dtype: str
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the last pass over the pixels.

    Args:
      preprocess: from float32 in [0, 255] to the backbone's range.
      compute_dtype: of the result.

    Returns:
      Function of a batch of images in [0, 255], uint8 or float32. Compiled into
      one loop: cast, scale and shift one after another would each read and
      write the whole batch.
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
    """Returns what is left of the pipeline for the device to do.

    Args:
      config: augmentation, and where it runs; `train_image_size`, the size of
        the images that it makes.
      preprocess: from float32 in [0, 255] to the backbone's range.
      compute_dtype: of the model.

    Returns:
      Function of a `Batch`: the model's inputs.
    """
    if resolve_augment_on(config) == "host":
        return lambda batch: batch.inputs
    affine, size = augmentation.make_affine(config), config.train_image_size
    normalize = make_normalize(preprocess, compute_dtype)

    def finish(batch: Batch) -> tf.Tensor:
        images = batch.inputs
        if batch.transforms.shape[-1]:
            # The op makes images of the size that it takes; a reduction fills
            # the corner that it starts in.
            images = affine(images, batch.transforms)[:, :size, :size]
        return normalize(images)

    return finish


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
    compute_dtype: str = "float32",
    initial_epoch: int = 0,
    initial_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    class_weights: np.ndarray | None = None,
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
      compute_dtype: of the model.
      initial_epoch: the first epoch to produce, for a resumed run.
      initial_step: steps of that epoch to leave out.
      input_context: which of how many replicas; None: one replica, all of it.
      class_weights: see `weigh_classes`.

    Returns:
      Dataset of `Batch`, one replica's share of a step each, the replicas of
      this worker in turn.
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


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns weights that let every class count alike in the loss.

    `n / (num_classes * n_c)` (G. King and L. Zeng, "Logistic regression in
    rare events data", Political Analysis 9 (2001)), n_c the images of class c
    and num_classes those that have any: the mean over all examples is 1.

    Args:
      labels: int64 `[n]`.
      num_classes: of the data set.

    Returns:
      float32 `[num_classes]`; 0 for a class without examples.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def weigh_classes(batch: Batch, class_weights: np.ndarray | None) -> Batch:
    """Multiplies the examples' weights by their classes'.

    Args:
      batch: of training.
      class_weights: float32 `[num_classes]`; None: all 1.
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
    """Returns the index arithmetic of training.

    Args:
      num_examples: of the train split.
      config: image size and augmentation.
      global_batch_size: images a step over all replicas.
      seed: of order and augmentation.
      input_context: which of how many replicas; None: one replica, all of it.

    Returns:
      Function from an epoch (int64 scalar) to this worker's share of it:
      indices int64 `[batches, batch]`, and the weights and transforms of its
      batches, see `Batch`.
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
            drawn = tf.tile(tf.constant([_IDENTITY]), [num_examples, 1])
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
    """Chains the epochs, endlessly, from a step of an epoch on.

    Args:
      epoch_batches: from an epoch (int64 scalar) to its replica batches.
      initial_epoch: the first epoch.
      initial_step: steps of that epoch to leave out.
      context: which of how many replicas; None: one replica, all of it.
    """
    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int64).max)
    batches = epochs.flat_map(epoch_batches)
    # Index arithmetic so far: what is left out costs next to nothing.
    return endless(batches.skip(initial_step * local_replicas(context)))


def local_replicas(context: tf.distribute.InputContext | None) -> int:
    """Returns the number of this worker's replicas; None: one."""
    if context is None:
        return 1
    return context.num_replicas_in_sync // context.num_input_pipelines


def endless(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Says of a data set that it never ends.

    Of one that might end, several workers ask each other in every step whether
    it has.
    """
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

    Every example has weight 1 exactly once; examples of weight 0 fill the last
    step up to whole batches on every replica.

    Args:
      examples: the split.
      config: image size; `train_image_size` of what is augmented.
      preprocess: from float32 in [0, 255] to the backbone's range.
      global_batch_size: images a step over all replicas.
      compute_dtype: of the model.
      transforms: float32 `[views * num_examples, 8]`, see
        `augmentation.draw_transforms`: all examples, then all once more, as
        often as there are views to augment them for. None: once, as they are.
      input_context: which of how many replicas; None: one replica, all of it.

    Returns:
      Dataset of `Batch`, as `make_train_dataset`.
    """
    num_examples = examples.num_examples
    if transforms is None:
        transforms = tf.zeros([num_examples, 0])
    rows, weights = replica_batches(
        tf.range(transforms.shape[0], dtype=tf.int64),
        global_batch_size,
        input_context,
    )
    batches = tf.data.Dataset.from_tensor_slices(
        (rows % num_examples, weights, tf.gather(transforms, rows))
    )
    make_batch = _batch_maker(examples, config, preprocess, compute_dtype)
    return finish(batches, make_batch)


def _batch_maker(examples, config, preprocess, compute_dtype):
    """Returns `make_batch(indices, weights, transforms) -> Batch`."""
    labels = tf.constant(examples.labels)
    on_host = resolve_augment_on(config) == "host"
    normalize = make_normalize(preprocess, compute_dtype)

    def make_batch(indices, weights, transforms) -> Batch:
        # Python, but for microseconds an image: OpenCV and the decoder let
        # other threads run meanwhile.
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
    """Returns the order of an epoch: int64 `[num_examples]`, a permutation."""
    return tf.random.experimental.stateless_shuffle(
        tf.range(num_examples, dtype=tf.int64),
        seed=tf.stack([tf.cast(seed + _ORDER_STREAM * 2**32, tf.int64), epoch]),
    )


def replica_batches(
    order: tf.Tensor,
    global_batch_size: int,
    context: tf.distribute.InputContext | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts an epoch's order into this worker's replica batches.

    Args:
      order: int64 `[num_examples]`.
      global_batch_size: images a step over all replicas.
      context: which of how many replicas; None: one replica, all of it.

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


def finish(batches: tf.data.Dataset, make_batch: Callable) -> tf.data.Dataset:
    """Makes the batches of `batches`' elements, in parallel and in order."""
    return prefetch(batches.map(make_batch, num_parallel_calls=_num_threads()))


def prefetch(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps some batches ready, in order, and not sharded once more."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    # Sharding is done by index; a second one would drop examples.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(options)


def _num_threads() -> int:
    """Returns how many batches are in the making at once."""
    # Beyond 16, their memory (a batch each) costs more than it brings.
    return min(16, machine.num_cores())
