"""The trained network as every format holds it: float32, pixels to chances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from flowers17_tfdata.models import folding

_HALF = ("float16", "bfloat16")


def to_float32(model: keras.Model) -> keras.Model:
    """Rebuilds a model so that all of it computes in float32.

    Half precision is a matter of the training's hardware: other machines, and
    converters, have it slowly or not at all. Weights are float32 already.

    Args:
      model: functional; left as it is.

    Returns:
      A model of the same layers and weights.
    """
    config = _without_half(model.get_config())
    policy = keras.config.dtype_policy()
    # A nested functional model's config doesn't hold its policy.
    keras.config.set_dtype_policy("float32")
    try:
        rebuilt = type(model).from_config(config)
    finally:
        keras.config.set_dtype_policy(policy)
    folding.copy_variables(model, rebuilt)
    return rebuilt


def _without_half(config: Any) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        config = {k: _without_half(v) for k, v in config.items()}
        if config.get("dtype") in _HALF:
            config["dtype"] = "float32"
        return config
    if isinstance(config, (list, tuple)):
        return type(config)(_without_half(v) for v in config)
    return config


class Network(tf.Module):
    """A classifier with its preprocessing before it and softmax behind it.

    It saves as plain TensorFlow: what loads it needs no Keras.

    Args:
      model: from preprocessed images to logits, float32.
      preprocess: see `backbones.get_preprocess`.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
    ):
        super().__init__(name="network")
        self.image_size = model.input_shape[1]
        # tf.Module finds TensorFlow's variables, not Keras's.
        self._weights = [variable.value for variable in model.weights]
        # In a closure: TensorFlow would try to save the layers themselves.
        self._logits = lambda images: model(preprocess(images), training=False)

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Classifies.

        Args:
          images: float32 `[batch, image_size, image_size, 3]` in [0, 255], RGB.

        Returns:
          float32 `[batch, num_classes]`; rows sum to 1.
        """
        return tf.nn.softmax(self._logits(images))
