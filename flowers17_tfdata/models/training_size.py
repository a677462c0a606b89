"""Lets a classifier train on smaller images than it is evaluated on."""

from __future__ import annotations

import keras

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import classifier


def training_model(
    model: keras.Model, config: InputConfig
) -> keras.Model | None:
    """Returns the classifier for training images of `--train_scale`.

    Training it trains `model`; see `resized`.

    Args:
      model: a classifier for images of `--image_size`.
      config: holds the sizes for training and evaluation.

    Returns:
      None if the sizes are equal, so that `model` takes training images.

    Raises:
      ConfigError: training images are too small for the backbone.
    """
    size = config.train_image_size
    if size == config.image_size:
        return None
    try:
        return resized(model, size)
    except ValueError as error:
        raise ConfigError(
            f"--train_scale={config.train_scale:g} of --image_size="
            f"{config.image_size}: training images of {size} pixels are too "
            f"small for {classifier.get_backbone(model).name}"
        ) from error


def resized(model: keras.Model, size: int) -> keras.Model:
    """Returns a classifier that shares all layers with another.

    Args:
      model: a classifier. From now on, the backbone takes images of any size;
        the file that the model is saved to stays the same.
      size: height and width of the images of the new one, pixels.

    Raises:
      ValueError: the images are too small for the backbone.
    """
    backbone = classifier.get_backbone(model)
    backbone.input_spec = keras.InputSpec(ndim=4, axes={-1: 3})
    x = inputs = keras.Input((size, size, 3), name="image")
    for layer in model.layers[1:]:
        x = layer(x)
    return keras.Model(inputs, x, name=model.name)
