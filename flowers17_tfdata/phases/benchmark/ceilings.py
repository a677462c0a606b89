"""The rate that a model would reach if all its arithmetic ran at full speed.

Full speed is what large matrix products reach on this machine: a reference,
not a bound. A vendor's convolutions may do a little better, and either may be
measured in a slower moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from flowers17_tfdata.phases.benchmark import timing

# Large enough to run at the processor's full rate, small enough to be quick.
_MATRIX_SIZE = 2048


def count_flop(
    backbone: keras.Model, image_size: int, *, training: bool = False
) -> int:
    """Counts the floating-point operations that one image takes.

    Two (multiply, add) for each weight of a kernel at each output position;
    the rest, the head included, is below 1 %. A training step takes as many
    again for the gradient of each trained layer's weights, and as many for the
    gradient of its inputs. (The first trained layers need no gradient of their
    inputs; counting it adds a per cent or two.)

    Args:
      backbone: a functional model.
      image_size: height and width of the images, pixels.
      training: count a training step, not only its forward pass.
    """
    # The backbone itself may take images of any size.
    outputs = keras.Model(
        backbone.inputs, [x.output for x in backbone.layers]
    ).compute_output_spec(keras.KerasTensor([1, image_size, image_size, 3]))
    flop = 0
    for layer, output in zip(backbone.layers, outputs, strict=True):
        positions = math.prod(output.shape[1:-1])
        kernels = [w for w in layer.weights if "kernel" in w.name]
        passes = 3 if training and layer.trainable_weights else 1
        for kernel in kernels:
            flop += 2 * positions * math.prod(kernel.shape) * passes
    return flop


def make_matmul(dtype: str) -> Callable[[], float]:
    """Returns a measurement of square matrix products, FLOP/s, in `dtype`."""
    matrix = tf.cast(tf.random.normal([_MATRIX_SIZE, _MATRIX_SIZE]), dtype)

    @tf.function
    def product():
        # Reading the sum waits until the accelerator has finished.
        return tf.reduce_sum(tf.cast(matrix @ matrix, tf.float32))

    def call() -> int:
        float(product())
        return 2 * _MATRIX_SIZE**3

    return lambda: timing.rate(call)
