"""Avoids TensorFlow's slow kernel for depthwise gradients on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from keras.layers import DepthwiseConv2D


def avoid_slow_gradient(model: keras.Model) -> None:
    """Makes strided depthwise convolutions compute a gradient in float32.

    In bfloat16, TensorFlow 2.21's gradient with respect to the images has no
    oneDNN kernel for strides above 1. It takes 33 to 50 ms for 32 images, ten
    times as long as in float32, which is 40 % of MobileNet's training step
    (AVX512-BF16, 2 cores). On GPUs and in float32 nothing changes.

    Args:
      model: changed in place, nested models included. Its outputs, and the
        file that it is saved to, stay the same.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    for layer in model._flatten_layers(include_self=False):
        if (
            type(layer) is DepthwiseConv2D
            and layer.compute_dtype == "bfloat16"
            and max(layer.strides) > 1
            and max(layer.dilation_rate) == 1
            and layer.data_format == "channels_last"
        ):
            layer.call = _make_call(layer)


def _make_call(layer: DepthwiseConv2D) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a `call` of the layer that differs only in its gradient."""
    strides = [1, *layer.strides, 1]
    padding = layer.padding.upper()

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradient(upstream):
            images_gradient = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(images),
                tf.cast(kernel, tf.float32),
                tf.cast(upstream, tf.float32),
                strides,
                padding,
            )
            kernel_gradient = tf.nn.depthwise_conv2d_backprop_filter(
                images, tf.shape(kernel), upstream, strides, padding
            )
            return tf.cast(images_gradient, images.dtype), kernel_gradient

        outputs = tf.nn.depthwise_conv2d(images, kernel, strides, padding)
        return outputs, gradient

    def call(images):
        outputs = convolve(images, tf.convert_to_tensor(layer.kernel))
        if layer.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
        return layer.activation(outputs)

    return call
