"""One pass of the frozen backbone over a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.results import terminal
from flowers17_tfdata.training.preemption import StopRequest


def extract_features(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: Iterable,
    device_stage: Callable[[Batch], tf.Tensor],
    *,
    title: str,
    num_steps: int,
    stop: StopRequest,
) -> np.ndarray:
    """Runs a model once over a split.

    Args:
      model: from images to features `[batch, channels]`.
      strategy: the current one.
      batches: of `Batch`, one pass in order, distributed over the strategy.
      device_stage: from a `Batch` to the model's inputs.
      title: of the progress bar.
      num_steps: number of batches.
      stop: whether to stop.

    Returns:
      float32 `[n, channels]`, in the split's order, without the padding.

    Raises:
      Preempted: it was asked to stop.
    """

    def replica_forward(batch: Batch):
        features = model(device_stage(batch), training=False)
        return tf.cast(features, tf.float32), batch.weights

    @tf.function
    def forward(batch):
        results = strategy.run(replica_forward, args=(batch,))
        # A step's replicas hold neighbouring stretches of the split.
        return [strategy.gather(r, axis=0) for r in results]

    parts = []
    with terminal.EpochProgress(title, num_steps) as progress:
        for batch in batches:
            features, weights = forward(batch)
            parts.append(features.numpy()[weights.numpy() > 0])
            stop.alive()
            progress.advance()
            stop.check(f"stopped during {title}")
    return np.concatenate(parts)


def weights_digest(model: keras.Model) -> str:
    """Returns a hash of a model's weights, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for variable in model.variables:
        if "seed_generator" in variable.path:
            continue
        value = keras.ops.convert_to_numpy(variable)
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()
