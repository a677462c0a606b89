"""Grad-CAM: heat maps of the image regions that support a class."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.models import classifier

# Opacity of the colours where the heat is 1.
_OPACITY = 0.65


class NotExplainable(Exception):
    """The model isn't a backbone, a pooling layer and a chain of layers."""


class GradCam:
    """Explains a classifier by its backbone's last feature map.

    For the logit y of a class and the feature maps A_k, the weight of map k is
    the mean of dy/dA_k over its positions, and the heat is
    ReLU(sum over k of weight_k * A_k) (Selvaraju et al. 2017,
    https://arxiv.org/abs/1610.02391, equations 1 and 2). Gradients are float32
    under every precision policy, because the head is copied in float32.

    Args:
      model: a classifier built by this package, batch-norm folded or not.
      preprocess: maps float32 images in [0, 255] to the model's input.

    Raises:
      NotExplainable: the model has another form.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
    ):
        try:
            pooler = model.get_layer("pooler")
            self._features = keras.Model(model.inputs, pooler.input)
        except (ValueError, AttributeError) as error:
            raise NotExplainable(
                "it has no layer named pooler on top of a backbone"
            ) from error
        if len(self._features.output.shape) != 4:
            raise NotExplainable("its backbone doesn't end in a feature map")
        self._head = [
            _float32_copy(layer) for layer in classifier.get_head_layers(model)
        ]
        self._preprocess = preprocess

    def feature_maps(self, images: np.ndarray) -> tf.Tensor:
        """Runs the backbone.

        Args:
          images: uint8 `[batch, height, width, 3]`, at the model's input size.

        Returns:
          float32 `[batch, map height, map width, channels]`.
        """
        inputs = self._preprocess(tf.cast(images, tf.float32))
        return tf.cast(self._features(inputs, training=False), tf.float32)

    def heat(self, maps: tf.Tensor, class_id: int) -> np.ndarray:
        """Returns how strongly each position supports a class.

        Args:
          maps: float32 `[map height, map width, channels]`, the feature maps
            of one image.
          class_id: index of the class.

        Returns:
          float32 `[map height, map width]` in [0, 1]. The largest value is 1,
          or 0 if nothing supports the class.
        """
        with tf.GradientTape() as tape:
            tape.watch(maps)
            x = maps[tf.newaxis]
            for layer in self._head:
                x = layer(x, training=False)
            logit = x[0, class_id]
        weights = tf.reduce_mean(tape.gradient(logit, maps), axis=[0, 1])
        heat = tf.nn.relu(tf.einsum("hwc,c->hw", maps, weights)).numpy()
        peak = heat.max()
        return heat / peak if peak > 0 else heat


def _float32_copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    copy = type(layer).from_config(layer.get_config() | {"dtype": "float32"})
    copy.build(layer.input.shape)
    copy.set_weights(layer.get_weights())
    return copy


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Paints heat over an image.

    Args:
      image: uint8 `[height, width, 3]`, RGB.
      heat: float32 `[map height, map width]` in [0, 1].

    Returns:
      uint8 `[height, width, 3]`, RGB: the image in gray, and over it OpenCV's
      INFERNO colours (distinguishable by the colour-blind), the more opaque
      the greater the heat.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(
        np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO
    )
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis]
    alpha = _OPACITY * np.sqrt(heat)[..., np.newaxis]
    return np.rint(gray * (1 - alpha) + colours * alpha).astype(np.uint8)
