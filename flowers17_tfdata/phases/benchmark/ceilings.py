"""What large matrix products and memory copies reach on this machine.

References, not bounds: a vendor's convolutions may do a little better than the
products, and either may be measured in a slower moment.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.phases.benchmark import timing

# Large enough to run at the processor's full rate, small enough to be quick.
_MATRIX_SIZE = 2048
# Far beyond any cache.
_COPY_BYTES = 2**28


def forward_flop(model: keras.Model) -> int:
    """Returns the floating-point operations of a forward pass of one image.

    Two (multiply, add) for each weight of a convolution at each output
    position, and for each weight of a dense layer; the rest is below 1 %.
    """
    return sum(_flop(layer) for layer in _weighted_layers(model))


def step_flop(model: keras.Model) -> int:
    """Returns the floating-point operations of a training step, per image.

    The forward pass; for each layer that is trained, as much again for its
    weights' gradient and as much for its inputs'. (The first trained layers
    need no gradient of their inputs; it is counted: a per cent or two.)
    """
    return sum(
        _flop(layer) * (3 if layer.trainable_weights else 1)
        for layer in _weighted_layers(model)
    )


def _weighted_layers(model: keras.Model) -> list[keras.layers.Layer]:
    kinds = (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv2D,
        keras.layers.Dense,
    )
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, kinds)
    ]


def _flop(layer: keras.layers.Layer) -> int:
    # Positions of a dense layer's output: those between batch and channels.
    positions = int(np.prod(layer.output.shape[1:-1]))
    kernels = [w for w in layer.weights if "kernel" in w.name]
    return sum(2 * int(np.prod(k.shape)) * positions for k in kernels)


def make_matmul(dtype: str) -> Callable[[], float]:
    """Returns a measurement of square matrix products, FLOP/s, in `dtype`."""
    matrix = tf.cast(tf.random.normal([_MATRIX_SIZE, _MATRIX_SIZE]), dtype)

    @tf.function
    def product():
        # Summed, so that the accelerator has finished when it is read.
        return tf.reduce_sum(tf.cast(matrix @ matrix, tf.float32))

    def call() -> int:
        float(product())
        return 2 * _MATRIX_SIZE**3

    return lambda: timing.rate(call)


def make_copy() -> Callable[[], float]:
    """Returns a measurement of the host's memory: bytes copied/s, all cores."""
    cores = machine.num_cores()
    sources = np.array_split(np.ones(_COPY_BYTES, np.uint8), cores)
    targets = [np.zeros_like(source) for source in sources]
    pool = ThreadPoolExecutor(cores)

    def call() -> int:
        list(pool.map(np.copyto, targets, sources))
        return _COPY_BYTES

    return lambda: timing.rate(call)
