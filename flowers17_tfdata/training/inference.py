"""One pass of a model over a split: features, or logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.training.preemption import StopRequest


def run_model(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: Iterable,
    device_stage: Callable[[Batch], tf.Tensor],
    *,
    title: str,
    num_steps: int,
    stop: StopRequest | None = None,
    xla: bool = False,
) -> np.ndarray:
    """Runs a model once over a split, on all replicas of all workers.

    Args:
      model: from images to `[batch, channels]`.
      strategy: the current one.
      batches: of `Batch`, one pass in order, distributed over the strategy.
      device_stage: from a `Batch` to the model's inputs.
      title: of the progress bar.
      num_steps: number of batches.
      stop: whether to stop; None: nothing stops it.
      xla: compile each replica's pass.

    Returns:
      float32 `[n, channels]`, in the split's order, without the padding.

    Raises:
      Preempted: it was asked to stop.
    """
    stop = stop or StopRequest()
    forward = lambda inputs: model(inputs, training=False)  # noqa: E731
    if xla:
        forward = tf.function(forward, jit_compile=True)

    def replica_forward(batch: Batch):
        outputs = forward(device_stage(batch))
        return tf.cast(outputs, tf.float32), batch.weights

    @tf.function
    def step(batch):
        results = strategy.run(replica_forward, args=(batch,))
        # A step's replicas hold neighbouring stretches of the split.
        return [strategy.gather(r, axis=0) for r in results]

    parts = []
    with terminal.EpochProgress(title, num_steps) as progress:
        for batch in batches:
            outputs, weights = step(batch)
            parts.append(outputs.numpy()[weights.numpy() > 0])
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
