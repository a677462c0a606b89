"""Runs a model without training it: its outputs, or its loss and accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.training.preemption import StopRequest


class Inference:
    """Runs a model on all replicas of all workers.

    Validation, evaluation, prediction and feature extraction all run here.

    Args:
      model: from the outputs of `device_stage` to `[batch, channels]`: logits,
        or features.
      strategy: the strategy that the model was built in.
      device_stage: from a replica's `Batch` to the model's inputs.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
    ):
        self._model = model
        self._strategy = strategy
        self._device_stage = device_stage

    def _forward(self, batch: Batch) -> tf.Tensor:
        outputs = self._model(self._device_stage(batch), training=False)
        return tf.cast(outputs, tf.float32)

    def outputs(self, batches: Iterable) -> Iterator[np.ndarray]:
        """Yields the outputs of each batch, in order and without padding.

        Args:
          batches: one pass of `Batch`, distributed over the strategy.

        Yields:
          float32 `[n, channels]`, n at most the global batch size.
        """
        for batch in batches:
            outputs, weights = self._gathered_outputs(batch)
            yield outputs.numpy()[weights.numpy() > 0]

    # A few pictures come in small batches of any size.
    @tf.function(reduce_retracing=True)
    def _gathered_outputs(self, batch):
        def replica_fn(batch: Batch):
            return self._forward(batch), batch.weights

        results = self._strategy.run(replica_fn, args=(batch,))
        # The replicas of one step hold neighbouring parts of the split.
        return [self._strategy.gather(r, axis=0) for r in results]

    def loss_and_accuracy(
        self,
        batches: Iterable,
        after_step: Callable[[], None] = lambda: None,
    ) -> tuple[float, float]:
        """Evaluates a classifier.

        Only three sums leave the device at each step, whatever the number of
        classes.

        Args:
          batches: one pass of `Batch`, distributed over the strategy.
          after_step: called after each step.

        Returns:
          The mean cross-entropy without label smoothing, nats, and the share
          of correct answers.
        """
        totals = np.zeros(3)
        for batch in batches:
            totals += self._summed_scores(batch).numpy()
            after_step()
        loss, correct, count = totals
        return float(loss / count), float(correct / count)

    @tf.function
    def _summed_scores(self, batch) -> tf.Tensor:
        def replica_fn(batch: Batch):
            logits = self._forward(batch)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                batch.labels, logits
            )
            correct = tf.argmax(logits, axis=-1) == batch.labels
            # tf.where: 0 * NaN would let a padding example spoil the sum.
            counts = batch.weights > 0
            parts = (losses, tf.cast(correct, tf.float32), tf.ones_like(losses))
            return tf.stack(
                [tf.reduce_sum(tf.where(counts, p, 0.0)) for p in parts]
            )

        # One collective operation: each costs a round trip over the network.
        return self._strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            self._strategy.run(replica_fn, args=(batch,)),
            axis=None,
        )


class ImageInference:
    """Runs a model on images, from their pixels to its outputs.

    The model is traced at the first batch, so an instance should live as long
    as images come.

    Args:
      model: from preprocessed images to `[batch, channels]`, built in the
        strategy's scope.
      strategy: the current strategy.
      config: the options of the input pipeline.
      preprocess: from float32 in [0, 255] to the backbone's range.
      compute_dtype: the dtype of the model's inputs; None: that of the global
        policy.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        config: InputConfig,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
        compute_dtype: str | None = None,
    ):
        self._strategy = strategy
        self._config = config
        self._preprocess = preprocess
        policy = keras.config.dtype_policy()
        self._dtype = compute_dtype or policy.compute_dtype
        device_stage = input_pipeline.make_device_stage(
            config, preprocess, self._dtype
        )
        self._inference = Inference(model, strategy, device_stage)

    def outputs(
        self,
        examples: Examples,
        global_batch_size: int,
        transforms: np.ndarray | tf.Tensor | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the outputs of each batch, in order; see `Inference.outputs`.

        Args:
          examples: the examples.
          global_batch_size: images per step over all replicas.
          transforms: see `input_pipeline.make_eval_dataset`.
        """
        batches = self._strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.make_eval_dataset(
                examples,
                self._config,
                self._preprocess,
                global_batch_size=global_batch_size,
                compute_dtype=self._dtype,
                transforms=transforms,
                input_context=context,
            )
        )
        return self._inference.outputs(batches)


def collect(
    outputs: Iterator[np.ndarray],
    title: str,
    num_steps: int,
    stop: StopRequest | None = None,
) -> np.ndarray:
    """Concatenates the outputs of all batches, with a progress bar.

    Args:
      outputs: what `Inference.outputs` returns.
      title: the title of the progress bar.
      num_steps: the number of batches.
      stop: the request to stop, checked after each batch.

    Raises:
      Preempted: the process was asked to stop.
    """
    stop = stop or StopRequest()
    parts = []
    with terminal.EpochProgress(title, num_steps) as progress:
        for part in outputs:
            parts.append(part)
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
        digest.update(value.tobytes())
    return digest.hexdigest()
