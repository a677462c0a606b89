"""One network for images of two sizes: training's and evaluation's."""

from __future__ import annotations

import keras

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import classifier, folding


def for_training(model: keras.Model, config: InputConfig) -> keras.Model:
    """Lets a classifier train on images of `--train_scale`.

    Args:
      model: a classifier for images of `--image_size`; left as it is.
      config: both sizes.

    Returns:
      `model`, where they are one; else a classifier of the same weights, names,
      trainable flags, input and output shapes, whose backbone takes images of
      any size. Its variables are created in the caller's strategy scope.
    """
    if not _reduces(config):
        return model
    rebuilt_config = model.get_config()
    name = classifier.get_backbone(model).name
    for layer in rebuilt_config["layers"]:
        if layer["name"] == name:
            _take_any_size(layer["config"])
    rebuilt = keras.Model.from_config(rebuilt_config)
    # A functional config holds none.
    rebuilt.dtype_policy = model.dtype_policy
    folding.copy_variables(model, rebuilt)
    return rebuilt


def training_model(
    model: keras.Model, config: InputConfig
) -> keras.Model | None:
    """Returns the classifier for images of `--train_scale`.

    It shares all layers of `model`: training it trains `model`.

    Args:
      model: what `for_training` returned.
      config: both sizes.

    Returns:
      None, where `model` itself takes such images.

    Raises:
      ConfigError: the backbone can't take them.
    """
    if not _reduces(config):
        return None
    size = config.train_image_size
    inputs = keras.Input((size, size, 3), name="image")
    x = inputs
    try:
        for layer in model.layers[1:]:
            x = layer(x)
    except ValueError as error:
        raise ConfigError(
            f"--train_scale={config.train_scale:g} of --image_size="
            f"{config.image_size}: training images of {size} pixels are too "
            f"small for {classifier.get_backbone(model).name}"
        ) from error
    return keras.Model(inputs, x, name=model.name)


def _reduces(config: InputConfig) -> bool:
    return config.train_image_size != config.image_size


def _take_any_size(config: dict) -> None:
    """Changes the config of a functional model in place."""
    for layer in config["layers"]:
        if layer["class_name"] == "InputLayer":
            batch, _, _, channels = layer["config"]["batch_shape"]
            layer["config"]["batch_shape"] = (batch, None, None, channels)
