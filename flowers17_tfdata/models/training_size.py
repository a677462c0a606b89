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

    It shares all layers with `model`: training it trains `model`.

    Args:
      model: a classifier for images of `--image_size`. Its backbone takes
        images of any size from now on; the file that it is saved to stays the
        same.
      config: holds the sizes for training and evaluation.

    Returns:
      None if the sizes are equal, so that `model` takes training images.

    Raises:
      ConfigError: training images are too small for the backbone.
    """
    size = config.train_image_size
    if size == config.image_size:
        return None
    backbone = classifier.get_backbone(model)
    backbone.input_spec = keras.InputSpec(ndim=4, axes={-1: 3})
    x = inputs = keras.Input((size, size, 3), name="image")
    try:
        for layer in model.layers[1:]:
            x = layer(x)
    except ValueError as error:
        raise ConfigError(
            f"--train_scale={config.train_scale:g} of --image_size="
            f"{config.image_size}: training images of {size} pixels are too "
            f"small for {backbone.name}"
        ) from error
    return keras.Model(inputs, x, name=model.name)
