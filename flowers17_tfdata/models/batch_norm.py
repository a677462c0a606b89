"""Batch-norm statistics from the data, in place of a network's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def batch_norm_layers(
    model: keras.Model,
) -> list[keras.layers.BatchNormalization]:
    """Returns the batch-norm layers of a model, nested models included."""
    return _layers(model, keras.layers.BatchNormalization)


def _layers(model: keras.Model, layer_class: type) -> list[keras.layers.Layer]:
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, layer_class)
    ]


def calibrate(model: keras.Model, batches: Iterable[tf.Tensor]) -> None:
    """Sets every batch-norm's mean and variance to the data's, once.

    Args: see `Calibration`.
    """
    Calibration(model, batch_norm_layers(model)).run(batches)


class Calibration:
    """Sets means and variances of batch-norm to the data's.

    Means and variances of all batches together, from the batches' own
    ("precise batch-norm", Wu and Johnson 2021,
    https://arxiv.org/abs/2105.07576): a moving average with
    momentum 0.99 needs hundreds of steps to forget its start, and a random
    network that is normalized by its initial statistics lets the signal die.

    Args:
      model: changed in place; no other weight changes. Its dropout (or
        stochastic depth) is off meanwhile: it would be measured, too.
      layers: of its batch-norm, those to be set, frozen or not. All others
        must be frozen: they keep theirs.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[keras.layers.BatchNormalization],
    ):
        self._layers = layers
        self._dropouts = _layers(model, keras.layers.Dropout)
        self._means = [layer.moving_mean for layer in layers]
        self._variances = [layer.moving_variance for layer in layers]

        @tf.function
        def measure(images):
            for variable in self._means + self._variances:
                variable.assign(tf.zeros_like(variable.value))
            model(images, training=True)

        # Traced and compiled once, however often it is run.
        self._measure = measure

    def run(self, batches: Iterable[tf.Tensor]) -> None:
        """Measures under the weights as they are now.

        Args:
          batches: preprocessed images, `[batch, height, width, 3]` float32.
        """
        if not self._layers:
            return
        # From zero, one update leaves (1 - momentum) * batch statistic.
        scales = [1 / (1 - layer.momentum) for layer in self._layers]
        sum_mean = [np.zeros(v.shape) for v in self._means]
        sum_square = [np.zeros(v.shape) for v in self._means]
        count = 0
        # A frozen batch-norm ignores the training flag.
        with (
            _all_set(self._layers, "trainable", True),
            _all_set(self._dropouts, "rate", 0.0),
        ):
            for images in batches:
                self._measure(images)
                for k, scale in enumerate(scales):
                    mean, variance = (
                        keras.ops.convert_to_numpy(v[k]) * scale
                        for v in (self._means, self._variances)
                    )
                    sum_mean[k] += mean
                    sum_square[k] += variance + np.square(mean)
                count += 1
        for k in range(len(self._layers)):
            mean = sum_mean[k] / count
            self._means[k].assign(mean.astype(np.float32))
            variance = sum_square[k] / count - np.square(mean)
            self._variances[k].assign(variance.astype(np.float32))


@contextlib.contextmanager
def _all_set(
    layers: Sequence[keras.layers.Layer], name: str, value: Any
) -> Iterator[None]:
    """Sets an attribute of all layers, for a while."""
    kept = [getattr(layer, name) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, name, value)
        yield
    finally:
        for layer, old in zip(layers, kept, strict=True):
            setattr(layer, name, old)
