"""Grad-CAM: which parts of a picture spoke for a class."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.models import classifier

# How much of the picture the colours hide where the heat is 1.
_OPACITY = 0.65


class NotExplainable(Exception):
    """The model isn't a backbone, a pooling and a chain of layers."""


class GradCam:
    """Explains a classifier by its backbone's last feature map.

    For the logit y of a class and the feature maps A_k, the weight of map k is
    the mean of dy/dA_k over its positions, and the heat is
    ReLU(sum over k of weight_k * A_k) (Selvaraju et al. 2017,
    https://arxiv.org/abs/1610.02391, equations 1 and 2). Gradients are float32
    under every precision policy: the head is copied in float32.

    Args:
      model: a classifier of ours, batch-norm folded or not.
      preprocess: from float32 images in [0, 255] to what it takes.

    Raises:
      NotExplainable: the model is of another form.
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
        self._head = _float32_copy(classifier.get_head_layers(model))
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
        """Returns where a picture speaks for a class.

        Args:
          maps: float32 `[map height, map width, channels]`, of one picture.
          class_id: of the logit that is explained.

        Returns:
          float32 `[map height, map width]` in [0, 1]; the largest is 1 unless
          nothing speaks for the class (all 0).
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


def _float32_copy(layers: list[keras.layers.Layer]) -> list:
    copies = []
    for layer in layers:
        copy = type(layer).from_config(
            layer.get_config() | {"dtype": "float32"}
        )
        copy.build(layer.input.shape)
        copy.set_weights(layer.get_weights())
        copies.append(copy)
    return copies


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Paints heat over a picture.

    Args:
      image: uint8 `[height, width, 3]`, RGB.
      heat: float32 `[map height, map width]` in [0, 1].

    Returns:
      uint8 `[height, width, 3]`, RGB: the picture in gray where the heat is 0,
      OpenCV's INFERNO (readable by the colour-blind) over it where it is 1.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat, 0, 1)
    colours = cv2.applyColorMap(
        np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO
    )
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB).astype(np.float32)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    alpha = _OPACITY * np.sqrt(heat)[..., np.newaxis]
    mixed = gray[..., np.newaxis] * (1 - alpha) + colours * alpha
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
