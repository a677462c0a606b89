"""Batch-norm statistics from the data, for networks without pretrained ones."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf


def batch_norm_layers(
    model: keras.Model,
) -> list[keras.layers.BatchNormalization]:
    """Returns the batch-norm layers of a model, nested models included."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def calibrate(model: keras.Model, batches: Iterable[tf.Tensor]) -> None:
    """Sets every batch-norm's mean and variance to the data's.

    Means and variances of all batches together, from the batches' own
    ("precise batch-norm", Wu and Johnson 2021,
    https://arxiv.org/abs/2105.07576): a moving average with
    momentum 0.99 needs hundreds of steps to forget its start, and a random
    network that is normalized by its initial statistics lets the signal die.

    Args:
      model: changed in place; no other weight changes.
      batches: preprocessed images, `[batch, height, width, 3]` float32.
    """
    layers = batch_norm_layers(model)
    if not layers:
        return
    trainable = [layer.trainable for layer in layers]
    means = [layer.moving_mean for layer in layers]
    variances = [layer.moving_variance for layer in layers]
    # From zero, one update leaves (1 - momentum) * batch statistic.
    scales = [1 / (1 - layer.momentum) for layer in layers]
    seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
    kept_seeds = [keras.ops.convert_to_numpy(v) for v in seeds]

    @tf.function
    def measure(images):
        for variable in means + variances:
            variable.assign(tf.zeros_like(variable.value))
        model(images, training=True)

    sum_mean = [np.zeros(v.shape) for v in means]
    sum_square = [np.zeros(v.shape) for v in means]
    count = 0
    for layer in layers:
        # A frozen batch-norm ignores the training flag.
        layer.trainable = True
    try:
        for images in batches:
            measure(images)
            for k, scale in enumerate(scales):
                mean = keras.ops.convert_to_numpy(means[k]) * scale
                variance = keras.ops.convert_to_numpy(variances[k]) * scale
                sum_mean[k] += mean
                sum_square[k] += variance + np.square(mean)
            count += 1
    finally:
        for layer, value in zip(layers, trainable, strict=True):
            layer.trainable = value
    for k in range(len(layers)):
        mean = sum_mean[k] / count
        means[k].assign(mean.astype(np.float32))
        variance = sum_square[k] / count - np.square(mean)
        variances[k].assign(variance.astype(np.float32))
    for variable, value in zip(seeds, kept_seeds, strict=True):
        variable.assign(value)
