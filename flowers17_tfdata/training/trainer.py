"""One training step, on any number of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.training.flat_weights import FlatWeights


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

    A compiled update passes over the weights once; otherwise each of its
    operations does.
    """

    def __init__(
        self,
        *,
        weights: FlatWeights,
        strategy: tf.distribute.Strategy,
        global_batch_size: int,
        optimizer: keras.optimizers.Optimizer,
        training_model: keras.Model | None = None,
        label_smoothing: float = 0.0,
        device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
        xla: str = "auto",
        deterministic: bool = False,
    ):
        """Builds the step.

        Args:
          weights: the weights of a model from images or features to logits.
            The model's own are out of date after a step, until `store`.
          strategy: the current strategy.
          global_batch_size: images per step over all replicas.
          optimizer: created in the strategy's scope.
          training_model: shares the layers of the model, for training images of
            another size; None: the model itself.
          label_smoothing: the label smoothing of the training loss, in [0, 1).
          device_stage: see `input_pipeline.make_device_stage`.
          xla: what XLA compiles: `off`, nothing; `auto`, the optimizer's
            update; `on`, the forward and backward pass, too.
          deterministic: whether `enable_op_determinism` was called.
        """
        self.weights = weights
        self.model = weights.model
        self.training_model = training_model or self.model
        self.strategy = strategy
        self.optimizer = optimizer
        self.global_batch_size = global_batch_size
        self._label_smoothing = label_smoothing
        self._device_stage = device_stage
        self._deterministic = deterministic
        self._num_classes = self.model.output_shape[-1]
        self._scales_loss = isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        )
        self._forward_backward = self._gradients_and_totals
        self._update = self._apply
        self._replica_step = self._forward_backward_update
        self._compile(xla)
        # Now, not in the first step: a checkpoint restores into it.
        with strategy.scope():
            optimizer.build(weights.variables)

    def _compile(self, xla: str) -> None:
        """Compiles parts of the step; see `xla` of the constructor.

        With several replicas the update stays as it is: it merges them, which
        XLA can't compile.
        """
        if xla == "on":
            self._forward_backward = _compiled(self._forward_backward)
        merges = isinstance(
            self.strategy,
            tf.distribute.MirroredStrategy
            | tf.distribute.MultiWorkerMirroredStrategy,
        )
        if xla == "off" or merges:
            return
        if xla == "on":
            # One program for all.
            self._replica_step = _compiled(self._replica_step)
        else:
            self._update = _compiled(self._update)

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

    @tf.function
    def sum_gradients(self, batch, num_steps: tf.Tensor) -> tf.Tensor:
        """Computes the gradients of a batch several times, and applies none.

        Args:
          batch: a `Batch` of a distributed dataset.
          num_steps: int32 scalar, the number of times.

        Returns:
          The sum over all gradients, float32 scalar: TensorFlow would leave out
          what nothing depends on.
        """

        def replica_sum(batch: Batch) -> tf.Tensor:
            total = tf.zeros([])
            for _ in tf.range(num_steps):
                gradients, _ = self._forward_backward(
                    self._device_stage(batch), batch.labels, batch.weights, 1.0
                )
                total += tf.add_n([tf.reduce_sum(g) for g in gradients])
            return total

        return self.strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            self.strategy.run(replica_sum, args=(batch,)),
            axis=None,
        )

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
        return self._replica_step(
            self._device_stage(batch), batch.labels, batch.weights
        )

    def _forward_backward_update(self, inputs, labels, weights) -> tf.Tensor:
        """Trains a replica; returns its stacked totals."""
        # Read here, since the optimizer updates it.
        scale = self.optimizer.scale_loss(1.0) if self._scales_loss else 1.0
        gradients, totals = self._forward_backward(
            inputs, labels, weights, scale
        )
        self._update(gradients)
        return totals

    def _gradients_and_totals(self, inputs, labels, weights, loss_scale):
        """Returns the gradients and the totals of a replica's batch.

        The gradients are float32, as the flat variables are; the totals are a
        stacked `TrainTotals`, float32 `[4]`.
        """
        targets = tf.one_hot(labels, self._num_classes)
        with (
            self.weights.substituted() as layer_weights,
            tf.GradientTape() as tape,
        ):
            tape.watch(layer_weights)
            logits = self.training_model(inputs, training=True)
            losses = self._losses(targets, weights, logits)
            loss = tf.reduce_sum(losses) / self.global_batch_size
            for term in self.training_model.losses:
                # Regularization counts once per step, not once per replica.
                loss += (
                    tf.cast(term, tf.float32)
                    / self.strategy.num_replicas_in_sync
                )
            loss *= loss_scale
        gradients = tape.gradient(
            loss,
            layer_weights,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # An example counts once, whatever the weight of its class.
        counted = tf.cast(weights > 0, tf.float32)
        correct = tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
        totals = TrainTotals(
            tf.reduce_sum(losses),
            tf.reduce_sum(correct * counted),
            tf.reduce_sum(counted),
            tf.zeros([]),
        )
        return self.weights.flatten(gradients), tf.stack(totals)

    def _losses(self, targets, weights, logits) -> tf.Tensor:
        """Returns the weighted, smoothed cross-entropy of each example."""
        smoothing = self._label_smoothing
        targets = targets * (1 - smoothing) + smoothing / self._num_classes
        losses = tf.nn.softmax_cross_entropy_with_logits(
            targets, tf.cast(logits, tf.float32)
        )
        # tf.where: 0 * NaN would let a padding example spoil the sum.
        return tf.where(weights > 0, losses * weights, 0.0)

    def _apply(self, gradients: list[tf.Tensor]) -> None:
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
            gradients = [g + poison for g in gradients]
        self.optimizer.apply(gradients, self.weights.variables)


def _compiled(function: Callable) -> Callable:
    return tf.function(function, jit_compile=True, autograph=False)
