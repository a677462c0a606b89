"""One training step and one evaluation step, on any number of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch


class TrainTotals(NamedTuple):
    """Sums over the examples of a step (or of many): float32 scalars.

    Attributes:
      loss: of the examples' losses, nats.
      correct: number of examples classified correctly.
      examples: number of examples.
      wait_secs: time spent waiting for batches, seconds, on this worker.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    examples: tf.Tensor
    wait_secs: tf.Tensor


class EvalTotals(NamedTuple):
    """Sums over examples.

    Attributes:
      loss: float32 scalar, cross-entropy without label smoothing, nats.
      top_5_correct: float32 scalar.
      confusion: float32 `[num_classes, num_classes]`, true class by predicted.
    """

    loss: tf.Tensor
    top_5_correct: tf.Tensor
    confusion: tf.Tensor


class Trainer:
    """Trains and evaluates one model under one strategy.

    The loss is the sum over examples divided by the global batch size, so the
    optimizer's sum over replicas is the gradient of the mean. The same code
    runs with one device, MirroredStrategy and MultiWorkerMirroredStrategy.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        global_batch_size: int,
        optimizer: keras.optimizers.Optimizer | None = None,
        training_model: keras.Model | None = None,
        label_smoothing: float = 0.0,
        device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs,
        xla: bool = False,
        xla_update: bool = False,
        deterministic: bool = False,
    ):
        """Builds the steps.

        Args:
          model: built in the strategy's scope, from images to logits.
          strategy: the current one.
          global_batch_size: images a step over all replicas.
          optimizer: built in the strategy's scope; None: evaluation only.
          training_model: shares the layers of `model`, for training images of
            another size; None: `model` itself.
          label_smoothing: of the training loss, in [0, 1).
          device_stage: from a replica's `Batch` to the model's inputs; see
            `input_pipeline.make_device_stage`.
          xla: compile each replica's forward and backward pass. Collectives
            and the optimizer stay outside, where XLA can't take them.
          xla_update: without a strategy, compile the optimizer's update: one
            pass over each variable instead of one an operation. Half of a
            head's step; little beside a network's, for seconds of compilation.
          deterministic: `enable_op_determinism` was called.
        """
        self.model = model
        self.training_model = training_model or model
        self.strategy = strategy
        self.optimizer = optimizer
        self.global_batch_size = global_batch_size
        self._label_smoothing = label_smoothing
        self._device_stage = device_stage
        self._deterministic = deterministic
        self._forward_backward = self._gradients_and_totals
        self._forward = lambda inputs: self.model(inputs, training=False)
        if xla:
            self._forward_backward = tf.function(
                self._forward_backward, jit_compile=True
            )
            self._forward = tf.function(self._forward, jit_compile=True)
        self._update = lambda gradients: self.optimizer.apply(
            gradients, self.model.trainable_variables
        )
        distributes = isinstance(
            strategy,
            tf.distribute.MirroredStrategy
            | tf.distribute.MultiWorkerMirroredStrategy,
        )
        # Even on one replica the optimizer would merge replicas, within XLA.
        if xla_update and not distributes:
            self._update = tf.function(self._update, jit_compile=True)
        self._num_classes = model.output_shape[-1]
        self._scales_loss = isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        )
        if optimizer is not None:
            with strategy.scope():
                # Now, not in the first step: a checkpoint restores into it.
                optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(self, batch: Batch) -> TrainTotals:
        """Updates the weights by one global batch; returns its sums."""
        return self._train_step(batch)

    @tf.function
    def train_steps(
        self, batches: Iterator, num_steps: tf.Tensor
    ) -> TrainTotals:
        """Takes steps without returning to Python in between.

        Args:
          batches: iterator over a distributed dataset of `Batch`.
          num_steps: int32 scalar, at least 1.

        Returns:
          Their sums.
        """
        totals = TrainTotals(*(tf.zeros([]) for _ in TrainTotals._fields))
        for _ in tf.range(num_steps):
            start = self._now()
            with tf.control_dependencies([start]):
                batch = next(batches)
            arrived = self.strategy.experimental_local_results(batch.weights)
            with tf.control_dependencies(arrived):
                wait_secs = tf.cast(self._now() - start, tf.float32)
            # What needs no batch (weight decay) would start before it is here
            # and be taken for waiting.
            with tf.control_dependencies([wait_secs]):
                sums = self._train_step(batch)._replace(wait_secs=wait_secs)
            totals = TrainTotals(
                *(a + b for a, b in zip(totals, sums, strict=True))
            )
        return totals

    def _now(self) -> tf.Tensor:
        """Returns the time, seconds, float64."""
        if self._deterministic:
            # TensorFlow refuses its own clock there.
            now = tf.numpy_function(time.time, [], tf.float64)
            return tf.ensure_shape(now, [])
        return tf.timestamp()

    def _train_step(self, batch: Batch) -> TrainTotals:
        sums = self._sum_over_replicas(self._replica_train_step, batch)
        return TrainTotals(*tf.unstack(sums))

    @tf.function
    def eval_step(self, batch: Batch) -> EvalTotals:
        """Evaluates one global batch; returns its sums."""
        sums = self._sum_over_replicas(self._replica_eval_step, batch)
        shape = [self._num_classes, self._num_classes]
        return EvalTotals(sums[0], sums[1], tf.reshape(sums[2:], shape))

    def _sum_over_replicas(self, step, batch: Batch) -> tf.Tensor:
        """Returns the totals of a replica's step, one after another."""

        def packed(batch):
            return tf.concat([tf.reshape(t, [-1]) for t in step(batch)], axis=0)

        # In one collective: across a network each takes its round trip.
        return self.strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            self.strategy.run(packed, args=(batch,)),
            axis=None,
        )

    def _replica_train_step(self, batch: Batch) -> TrainTotals:
        # Read outside of XLA's program: the optimizer updates it outside.
        scale = self.optimizer.scale_loss(1.0) if self._scales_loss else 1.0
        gradients, totals = self._forward_backward(
            self._device_stage(batch),
            batch.labels,
            batch.weights,
            scale,
        )
        self._apply(gradients)
        return totals

    def _gradients_and_totals(self, inputs, labels, weights, loss_scale):
        targets = tf.one_hot(labels, self._num_classes)
        with tf.GradientTape() as tape:
            logits = self.training_model(inputs, training=True)
            losses = self._losses(
                targets, weights, logits, self._label_smoothing
            )
            loss = tf.reduce_sum(losses) / self.global_batch_size
            if self.training_model.losses:
                # Regularization is once a step, not once a replica.
                loss += (
                    tf.add_n(self.training_model.losses)
                    / self.strategy.num_replicas_in_sync
                )
            loss *= loss_scale
        # Keras variables wrap the ones that the tape knows.
        gradients = tape.gradient(
            loss, [v.value for v in self.model.trainable_variables]
        )
        # Counted whatever its class weighs.
        counted = tf.cast(weights > 0, tf.float32)
        correct = tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
        return gradients, TrainTotals(
            tf.reduce_sum(losses),
            tf.reduce_sum(correct * counted),
            tf.reduce_sum(counted),
            tf.zeros([]),
        )

    def _apply(self, gradients) -> None:
        """Applies per-replica gradients; the optimizer sums over replicas."""
        replicas = tf.distribute.get_replica_context()
        if self._scales_loss:
            # Keras decides by replica 0 alone whether to skip a step; let
            # every replica see what any replica saw.
            finite = tf.reduce_all(
                [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
            )
            overflows = replicas.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.cast(~finite, tf.float32)
            )
            poison = tf.where(overflows > 0, float("inf"), 0.0)
            gradients = [g + tf.cast(poison, g.dtype) for g in gradients]
        self._update(gradients)

    def _replica_eval_step(self, batch: Batch) -> EvalTotals:
        logits = self._forward(self._device_stage(batch))
        targets = tf.one_hot(batch.labels, self._num_classes)
        losses = self._losses(targets, batch.weights, logits, 0.0)
        top_5 = tf.math.in_top_k(
            batch.labels, logits, k=min(5, self._num_classes)
        )
        confusion = tf.math.confusion_matrix(
            batch.labels,
            tf.argmax(logits, axis=-1),
            num_classes=self._num_classes,
            weights=batch.weights,
            dtype=tf.float32,
        )
        return EvalTotals(
            tf.reduce_sum(losses),
            tf.reduce_sum(tf.cast(top_5, tf.float32) * batch.weights),
            confusion,
        )

    def _losses(self, targets, weights, logits, label_smoothing: float):
        """Returns the weighted cross-entropy of each example."""
        targets = (
            targets * (1 - label_smoothing)
            + label_smoothing / self._num_classes
        )
        losses = tf.nn.softmax_cross_entropy_with_logits(
            targets, tf.cast(logits, tf.float32)
        )
        # where, not a product: 0 * NaN would let a padding example poison.
        return tf.where(weights > 0, losses * weights, 0.0)
