"""One training step, on any number of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch


class TrainTotals(NamedTuple):
    """Sums over the examples of one or several steps: float32 scalars.

    Attributes:
      loss: the sum of the examples' losses, nats.
      correct: the number of correctly classified examples.
      examples: the number of examples.
      wait_secs: the time that this worker waited for batches, seconds.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    examples: tf.Tensor
    wait_secs: tf.Tensor


class Trainer:
    """Trains one model under one strategy.

    The loss is the sum over examples divided by the global batch size, so the
    optimizer's sum over replicas is the gradient of the mean. The same code
    runs on one device, under MirroredStrategy and under
    MultiWorkerMirroredStrategy.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        global_batch_size: int,
        optimizer: keras.optimizers.Optimizer,
        training_model: keras.Model | None = None,
        label_smoothing: float = 0.0,
        device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
        xla: bool = False,
        xla_update: bool = False,
        deterministic: bool = False,
    ):
        """Builds the step.

        Args:
          model: from images or features to logits, built in the strategy's
            scope.
          strategy: the current strategy.
          global_batch_size: images per step over all replicas.
          optimizer: the optimizer, created in the strategy's scope.
          training_model: a model that shares the layers of `model` and takes
            training images of another size; None: `model` itself.
          label_smoothing: the label smoothing of the training loss, in [0, 1).
          device_stage: from a replica's `Batch` to the model's inputs; see
            `input_pipeline.make_device_stage`.
          xla: compile the forward and backward pass of each replica. Collective
            operations and the optimizer stay outside: XLA can't compile them.
          xla_update: compile the optimizer's update too, if there is only one
            device: it then passes over each variable once instead of once per
            operation. That halves the step of a head; beside the step of a
            network it saves little and takes seconds to compile.
          deterministic: whether `enable_op_determinism` was called.
        """
        self.model = model
        self.training_model = training_model or model
        self.strategy = strategy
        self.optimizer = optimizer
        self.global_batch_size = global_batch_size
        self._label_smoothing = label_smoothing
        self._device_stage = device_stage
        self._deterministic = deterministic
        self._num_classes = model.output_shape[-1]
        self._scales_loss = isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        )
        self._forward_backward = self._gradients_and_totals
        if xla:
            self._forward_backward = tf.function(
                self._forward_backward, jit_compile=True
            )
        distributes = isinstance(
            strategy,
            tf.distribute.MirroredStrategy
            | tf.distribute.MultiWorkerMirroredStrategy,
        )
        # Under these strategies the optimizer merges replicas even if there is
        # only one, which XLA can't compile.
        self._update = self._apply_to_variables
        if xla_update and not distributes:
            self._update = tf.function(self._update, jit_compile=True)
        # Now, not in the first step: a checkpoint restores into it.
        with strategy.scope():
            optimizer.build(model.trainable_variables)

    @tf.function
    def train_steps(
        self, batches: Iterator, num_steps: tf.Tensor
    ) -> TrainTotals:
        """Runs steps without returning to Python in between.

        Args:
          batches: iterator over a distributed dataset of `Batch`.
          num_steps: int32 scalar, at least 1.

        Returns:
          The sums over all steps.
        """
        totals = TrainTotals(*(tf.zeros([]) for _ in TrainTotals._fields))
        for _ in tf.range(num_steps):
            start = self._now()
            with tf.control_dependencies([start]):
                batch = next(batches)
            arrived = self.strategy.experimental_local_results(batch.weights)
            with tf.control_dependencies(arrived):
                wait_secs = tf.cast(self._now() - start, tf.float32)
            # Otherwise the parts of a step that need no batch (weight decay)
            # would start before the batch arrives and count as waiting.
            with tf.control_dependencies([wait_secs]):
                sums = self._train_step(batch)._replace(wait_secs=wait_secs)
            totals = TrainTotals(
                *(a + b for a, b in zip(totals, sums, strict=True))
            )
        return totals

    def _now(self) -> tf.Tensor:
        """Returns the time, seconds, float64."""
        if self._deterministic:
            # TensorFlow refuses its own clock in this mode.
            now = tf.numpy_function(time.time, [], tf.float64)
            return tf.ensure_shape(now, [])
        return tf.timestamp()

    def _train_step(self, batch: Batch) -> TrainTotals:
        # One collective operation: each costs a round trip over the network.
        sums = self.strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            self.strategy.run(self._replica_train_step, args=(batch,)),
            axis=None,
        )
        return TrainTotals(*tf.unstack(sums))

    def _replica_train_step(self, batch: Batch) -> tf.Tensor:
        # Read outside the XLA program, since the optimizer updates it outside.
        scale = self.optimizer.scale_loss(1.0) if self._scales_loss else 1.0
        gradients, totals = self._forward_backward(
            self._device_stage(batch), batch.labels, batch.weights, scale
        )
        self._apply(gradients)
        return tf.stack(totals)

    def _gradients_and_totals(self, inputs, labels, weights, loss_scale):
        targets = tf.one_hot(labels, self._num_classes)
        with tf.GradientTape() as tape:
            logits = self.training_model(inputs, training=True)
            losses = self._losses(targets, weights, logits)
            loss = tf.reduce_sum(losses) / self.global_batch_size
            if self.training_model.losses:
                # Regularization counts once per step, not once per replica.
                loss += (
                    tf.add_n(self.training_model.losses)
                    / self.strategy.num_replicas_in_sync
                )
            loss *= loss_scale
        # Keras variables wrap the variables that the tape watches.
        gradients = tape.gradient(
            loss, [v.value for v in self.model.trainable_variables]
        )
        # An example counts once, whatever the weight of its class.
        counted = tf.cast(weights > 0, tf.float32)
        correct = tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
        return gradients, TrainTotals(
            tf.reduce_sum(losses),
            tf.reduce_sum(correct * counted),
            tf.reduce_sum(counted),
            tf.zeros([]),
        )

    def _losses(self, targets, weights, logits) -> tf.Tensor:
        """Returns the weighted, smoothed cross-entropy of each example."""
        smoothing = self._label_smoothing
        targets = targets * (1 - smoothing) + smoothing / self._num_classes
        losses = tf.nn.softmax_cross_entropy_with_logits(
            targets, tf.cast(logits, tf.float32)
        )
        # tf.where: 0 * NaN would let a padding example spoil the sum.
        return tf.where(weights > 0, losses * weights, 0.0)

    def _apply(self, gradients) -> None:
        """Applies the gradients, summed over replicas by the optimizer."""
        replicas = tf.distribute.get_replica_context()
        if self._scales_loss:
            # Keras skips a step by looking at replica 0 alone. So if the
            # gradients overflow on any replica, they become inf on all.
            finite = tf.reduce_all(
                [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
            )
            overflows = replicas.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.cast(~finite, tf.float32)
            )
            poison = tf.where(overflows > 0, float("inf"), 0.0)
            gradients = [g + tf.cast(poison, g.dtype) for g in gradients]
        self._update(gradients)

    def _apply_to_variables(self, gradients) -> None:
        self.optimizer.apply(gradients, self.model.trainable_variables)
