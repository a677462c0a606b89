"""Sets the statistics of batch-norm layers to those of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.layers import BatchNormalization, Dropout, Layer


def batch_norm_layers(model: keras.Model) -> list[BatchNormalization]:
    """Returns the batch-norm layers of a model, nested models included."""
    return _layers(model, BatchNormalization)


def _layers(model: keras.Model, layer_class: type) -> list[Any]:
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, layer_class)
    ]


def measure_statistics(
    model: keras.Model, batches: Iterable[tf.Tensor]
) -> None:
    """Sets the statistics of all batch-norm layers, once.

    Args: see `StatisticsMeasurer`.
    """
    StatisticsMeasurer(model, batch_norm_layers(model)).run(batches)


class StatisticsMeasurer:
    """Sets the means and variances of batch-norm layers to those of the data.

    They are the mean and variance over all batches, computed from those of each
    batch ("precise batch-norm", Wu and Johnson 2021,
    https://arxiv.org/abs/2105.07576). A moving average with momentum 0.99 needs
    hundreds of steps to forget its initial value, and in a random network that
    normalizes by its initial statistics the signal dies out.

    Args:
      model: changed in place. No other weight changes. Its dropout (or
        stochastic depth) is off meanwhile, as it would add to the variance.
      layers: the batch-norm layers of the model to set, frozen or not. All
        others must be frozen, and keep their statistics.
    """

    def __init__(self, model: keras.Model, layers: list[BatchNormalization]):
        self._layers = layers
        self._dropouts = _layers(model, Dropout)

        @tf.function
        def measure(images):
            for layer in layers:
                for variable in (layer.moving_mean, layer.moving_variance):
                    variable.assign(tf.zeros_like(variable.value))
            model(images, training=True)

        # Traced and compiled once, however often it is run.
        self._measure = measure

    def run(self, batches: Iterable[tf.Tensor]) -> None:
        """Measures the statistics under the current weights.

        Args:
          batches: preprocessed images, float32 `[batch, height, width, 3]`.
        """
        if not self._layers:
            return
        # The sums of the batches' means and mean squares.
        sums = [np.zeros((2, *x.moving_mean.shape)) for x in self._layers]
        count = 0
        # A frozen batch-norm ignores the training flag.
        with (
            _all_set(self._layers, "trainable", True),
            _all_set(self._dropouts, "rate", 0.0),
        ):
            for images in batches:
                self._measure(images)
                count += 1
                for layer, total in zip(self._layers, sums, strict=True):
                    # From zero, an update leaves (1 - momentum) times the
                    # batch's statistic.
                    mean, variance = (
                        keras.ops.convert_to_numpy(v)
                        * (1 / (1 - layer.momentum))
                        for v in (layer.moving_mean, layer.moving_variance)
                    )
                    total += mean, variance + np.square(mean)
        for layer, total in zip(self._layers, sums, strict=True):
            mean, square = total / count
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(square - np.square(mean))


@contextlib.contextmanager
def _all_set(layers: list[Layer], name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of all layers, and restores it at the end."""
    before = [(layer, getattr(layer, name)) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, name, value)
        yield
    finally:
        for layer, old in before:
            setattr(layer, name, old)
