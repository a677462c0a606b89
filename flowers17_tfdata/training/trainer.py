"""One training step and one evaluation step, on any number of replicas."""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from flowers17_tfdata.input.input_pipeline import Batch


class TrainTotals(NamedTuple):
    """Sums over the examples of a step (or of many): float32 scalars."""

    loss: tf.Tensor
    correct: tf.Tensor
    examples: tf.Tensor


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
        label_smoothing: float = 0.0,
        global_clip_norm: float = 0.0,
    ):
        """Builds the steps.

        Args:
          model: built in the strategy's scope, from images to logits.
          strategy: the current one.
          global_batch_size: images a step over all replicas.
          optimizer: built in the strategy's scope; None: evaluation only.
          label_smoothing: of the training loss, in [0, 1).
          global_clip_norm: of the all-reduced gradient; 0: no clipping.
        """
        self.model = model
        self.strategy = strategy
        self.optimizer = optimizer
        self.global_batch_size = global_batch_size
        self._label_smoothing = label_smoothing
        self._global_clip_norm = global_clip_norm
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
        totals = self.strategy.run(self._replica_train_step, args=(batch,))
        return self._sum_over_replicas(totals)

    @tf.function
    def eval_step(self, batch: Batch) -> EvalTotals:
        """Evaluates one global batch; returns its sums."""
        totals = self.strategy.run(self._replica_eval_step, args=(batch,))
        return self._sum_over_replicas(totals)

    def _sum_over_replicas(self, totals):
        return type(totals)(
            *(
                self.strategy.reduce(tf.distribute.ReduceOp.SUM, t, axis=None)
                for t in totals
            )
        )

    def _replica_train_step(self, batch: Batch) -> TrainTotals:
        with tf.GradientTape() as tape:
            logits = self.model(batch.images, training=True)
            losses = self._losses(batch, logits, self._label_smoothing)
            loss = tf.reduce_sum(losses) / self.global_batch_size
            if self.model.losses:
                # Regularization is once a step, not once a replica.
                loss += (
                    tf.add_n(self.model.losses)
                    / self.strategy.num_replicas_in_sync
                )
            if self._scales_loss:
                loss = self.optimizer.scale_loss(loss)
        variables = self.model.trainable_variables
        # Keras variables wrap the ones that the tape knows.
        gradients = tape.gradient(loss, [v.value for v in variables])
        self._apply(gradients, variables)
        predicted = tf.argmax(logits, axis=-1)
        correct = tf.cast(predicted == batch.labels, tf.float32)
        return TrainTotals(
            tf.reduce_sum(losses),
            tf.reduce_sum(correct * batch.weights),
            tf.reduce_sum(batch.weights),
        )

    def _apply(self, gradients, variables) -> None:
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
        if self._global_clip_norm:
            # The norm that counts is the sum's, known after the all-reduce.
            summed = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            scale = self.optimizer.scale_loss(1.0) if self._scales_loss else 1.0
            norm = tf.linalg.global_norm(summed) / scale
            shrink = tf.minimum(
                1.0, self._global_clip_norm / tf.maximum(norm, 1e-12)
            )
            # inf * 0 would be NaN on the way to a skipped step: also skipped.
            gradients = [g * tf.cast(shrink, g.dtype) for g in gradients]
        self.optimizer.apply(gradients, variables)

    def _replica_eval_step(self, batch: Batch) -> EvalTotals:
        logits = self.model(batch.images, training=False)
        losses = self._losses(batch, logits, label_smoothing=0.0)
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

    def _losses(self, batch: Batch, logits, label_smoothing: float):
        """Returns the weighted cross-entropy of each example."""
        targets = tf.one_hot(batch.labels, self._num_classes)
        targets = (
            targets * (1 - label_smoothing)
            + label_smoothing / self._num_classes
        )
        losses = tf.nn.softmax_cross_entropy_with_logits(
            targets, tf.cast(logits, tf.float32)
        )
        # where, not a product: 0 * NaN would let a padding example poison.
        return tf.where(batch.weights > 0, losses * batch.weights, 0.0)
