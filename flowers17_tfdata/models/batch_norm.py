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

    The mean over batches of the batch statistics ("precise batch-norm", Wu
    and Johnson 2021, https://arxiv.org/abs/2105.07576): a moving average with
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
    statistics = [
        variable
        for layer in layers
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
    kept_seeds = [keras.ops.convert_to_numpy(v) for v in seeds]

    @tf.function
    def measure(images):
        for variable in statistics:
            variable.assign(tf.zeros_like(variable.value))
        model(images, training=True)

    sums = [np.zeros(v.shape) for v in statistics]
    count = 0
    for layer in layers:
        # A frozen batch-norm ignores the training flag.
        layer.trainable = True
    try:
        for images in batches:
            measure(images)
            # From zero, one update leaves (1 - momentum) * batch statistic.
            for total, variable in zip(sums, statistics, strict=True):
                total += keras.ops.convert_to_numpy(variable)
            count += 1
    finally:
        for layer, value in zip(layers, trainable, strict=True):
            layer.trainable = value
    scales = [1 / (1 - layer.momentum) for layer in layers for _ in range(2)]
    for variable, total, scale in zip(statistics, sums, scales, strict=True):
        variable.assign((total * scale / count).astype(np.float32))
    for variable, value in zip(seeds, kept_seeds, strict=True):
        variable.assign(value)
