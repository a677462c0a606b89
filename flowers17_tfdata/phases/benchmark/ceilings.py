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

from flowers17_tfdata.phases.benchmark import measurement

# Large enough to run at the processor's full rate, small enough to be quick.
_MATRIX_SIZE = 2048


def count_flop(
    backbone: keras.Model, image_size: int, *, training: bool = False
) -> int:
    """Counts the floating-point operations that one image takes.

    There are two (multiply, add) for each weight of a kernel at each output
    position; everything else, including the head, takes less than 1 %. In a
    training step each trained layer takes as many again for the gradient of its
    weights, and as many for the gradient of its inputs. (The first trained
    layers need no gradient of their inputs; counting it adds a per cent or
    two.)

    Args:
      backbone: a functional model.
      image_size: height and width of the images, pixels.
      training: count a training step, not only its forward pass.
    """
    every_layer = keras.Model(
        backbone.inputs, [layer.output for layer in backbone.layers]
    )
    # It may have been built for images of another size.
    every_layer.input_spec = keras.InputSpec(ndim=4)
    image = keras.KerasTensor([1, image_size, image_size, 3])
    outputs = every_layer.compute_output_spec(image)
    flop = 0
    for layer, output in zip(backbone.layers, outputs, strict=True):
        passes = 3 if training and layer.trainable_weights else 1
        operations = 2 * passes * math.prod(output.shape[1:-1])
        for weight in layer.weights:
            if "kernel" in weight.name:
                flop += operations * math.prod(weight.shape)
    return flop


def make_matmul(dtype: str) -> Callable[[], float]:
    """Returns a function that measures matrix products in `dtype`, FLOP/s."""
    matrix = tf.cast(tf.random.normal([_MATRIX_SIZE, _MATRIX_SIZE]), dtype)

    @tf.function
    def product():
        # Reading the sum waits until the accelerator has finished.
        return tf.reduce_sum(tf.cast(matrix @ matrix, tf.float32))

    def call() -> int:
        float(product())
        return 2 * _MATRIX_SIZE**3

    return lambda: measurement.rate(call)
