"""Backbone plus head: the network that is trained and saved."""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import ConfigError, UserError, one_line
from flowers17_tfdata.models import backbones

# What Keras leaves out of a .keras file (a zip), in a member that it ignores.
_EXTRAS = "flowers17_tfdata.json"

_STANDARDIZATION = "standardization"

# Standard deviation that a channel is taken to have at least, as a fraction of
# the mean over all channels.
_LEAST_SPREAD = 0.01

_ROWS_AT_ONCE = 4096


def build_classifier(
    config: ModelConfig,
    *,
    image_size: int,
    num_classes: int,
    seed: int,
) -> keras.Model:
    """Builds the classifier; `freeze` decides what of it trains.

    Args:
      config: backbone, weights, head.
      image_size: height and width, pixels.
      num_classes: units of the last layer.
      seed: of the head's initial weights and dropout.

    Returns:
      Model from preprocessed images `[batch, image_size, image_size, 3]`
      (float32; see `backbones.get_preprocess`) to float32 logits
      `[batch, num_classes]`.

    Raises:
      ConfigError: see `backbones.build_backbone`.
      UserError: see `backbones.build_backbone`.
    """
    keras.utils.set_random_seed(seed)
    backbone = backbones.build_backbone(
        config.backbone,
        image_size,
        config.weights,
    )
    # Again: how much randomness a backbone took must not change the head's.
    keras.utils.set_random_seed(seed + 1)
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D(name="pooler")(backbone(inputs))
    if config.head_units:
        x = keras.layers.Dense(
            config.head_units, activation="relu", name="head_dense"
        )(x)
    x = keras.layers.Dropout(config.dropout, seed=seed, name="head_dropout")(x)
    # Logits in float32 under every policy: softmax and the loss lose too much
    # in half precision.
    # A linear head starts from zeros (as in A. Kolesnikov et al., "Big
    # Transfer", ECCV 2020): what thousands of channels add up to under random
    # weights is an error that few images don't train away. Under a hidden
    # layer zeros would let no gradient through.
    logits = keras.layers.Dense(
        num_classes,
        kernel_initializer="glorot_uniform" if config.head_units else "zeros",
        dtype="float32",
        name="predictions",
    )(x)
    return keras.Model(inputs, logits, name="classifier")


def get_backbone(model: keras.Model) -> keras.Model:
    """Returns the backbone of a classifier built here (or loaded)."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            return layer
    raise UserError(
        f"the model {model.name} has no backbone inside: it was not saved by "
        "this program"
    )


def get_feature_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a classifier below its head.

    It shares the classifier's layers, and maps images to what the head takes,
    `[batch, channels]`.
    """
    return keras.Model(model.inputs, model.get_layer("pooler").output)


def get_head_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooler and what follows it, each fed by the one before."""
    layers = list(model.layers)
    return layers[layers.index(model.get_layer("pooler")) :]


def get_standardizing_head(
    model: keras.Model, features: np.ndarray
) -> keras.Model:
    """Returns the head of a classifier, to be trained on cached features.

    It shares the classifier's layers: training it trains the classifier. But
    each of its channels has mean 0 and variance 1 first: channels of layers
    far apart differ in scale by orders of magnitude, and one learning rate
    would be wrong for most. `absorb_standardization` makes the classifier
    compute the same.

    Args:
      model: a classifier.
      features: float32 `[..., channels]`, of the train split.

    Returns:
      Model from features `[batch, channels]` to logits.
    """
    pooler, *layers = get_head_layers(model)
    inputs = keras.Input(pooler.output.shape[1:], name="features")
    mean, spread = mean_and_spread(features)
    x = keras.layers.Normalization(
        mean=mean,
        variance=np.square(spread),
        dtype="float32",
        name=_STANDARDIZATION,
    )(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="head")


def mean_and_spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what standardizes features: `(features - mean) / spread`.

    Args:
      features: float32 `[..., channels]`.

    Returns:
      Mean and standard deviation of each channel, float64 `[channels]`. The
      deviation is at least a hundredth of the mean deviation: a channel that
      is dead on nearly all images would be all noise.
    """
    rows = features.reshape(-1, features.shape[-1])
    # By parts: all features in double precision may not fit into memory.
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
        total += part.sum(0)
        squares += np.square(part).sum(0)
    mean = total / len(rows)
    variance = squares / len(rows) - np.square(mean)
    spread = np.sqrt(np.maximum(variance, 0))
    spread = np.maximum(spread, _LEAST_SPREAD * spread.mean())
    spread[spread == 0] = 1.0
    return mean, spread


def absorb_standardization(head: keras.Model) -> None:
    """Lets a head's first dense layer take features as they are.

    Args:
      head: of `get_standardizing_head`, once trained; of no use afterwards.
    """
    scaling = head.get_layer(_STANDARDIZATION)
    mean, variance = (
        keras.ops.convert_to_numpy(x).reshape(-1).astype(np.float64)
        for x in (scaling.mean, scaling.variance)
    )
    dense = next(x for x in head.layers if isinstance(x, keras.layers.Dense))
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in dense.weights)
    kernel = kernel / np.sqrt(variance)[:, np.newaxis]
    dense.kernel.assign(kernel.astype(np.float32))
    dense.bias.assign((bias - mean @ kernel).astype(np.float32))


def set_linear_head(
    model: keras.Model, kernel: np.ndarray, bias: np.ndarray
) -> None:
    """Gives a classifier without a hidden layer its head's weights.

    Args:
      model: a classifier.
      kernel: float32 `[channels, num_classes]`, for features as they are.
      bias: float32 `[num_classes]`.
    """
    predictions = model.get_layer("predictions")
    predictions.kernel.assign(kernel)
    predictions.bias.assign(bias)


def save_classifier(
    model: keras.Model, path: pathlib.Path, extras: Mapping[str, Any]
) -> None:
    """Saves a model as a whole `.keras` file or not at all.

    Args:
      model: a classifier.
      path: of the file.
      extras: what `read_extras` returns, JSON-serializable; `class_names` in
        the order of the labels among them.
    """
    with files.whole_file(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_EXTRAS, json.dumps(extras))


def read_extras(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns what `save_classifier` put beside a model; {} if another did."""
    path = pathlib.Path(os.path.expanduser(path))
    try:
        with zipfile.ZipFile(path) as archive:
            extras = json.loads(archive.read(_EXTRAS))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {}
    return extras if isinstance(extras, dict) else {}


def load_classifier(path: str | pathlib.Path, flag: str) -> keras.Model:
    """Loads a saved `.keras` classifier.

    Args:
      path: of the file.
      flag: the flag that named it, for the error.

    Raises:
      UserError: missing, damaged, or not a classifier of ours.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    # Keras raises whatever the zip, JSON or HDF5 reader does.
    except Exception as error:
        raise UserError(
            f"{flag} {path} can't be loaded as a .keras model: "
            f"{one_line(error, 160)}"
        ) from error
    _check_form(model, f"{flag} {path}")
    return model


def _check_form(model: keras.Model, what: str) -> None:
    """Checks that a model is what the rest of the package takes for one.

    Raises:
      UserError: starts with `what`, the flag and the file.
    """
    shape, outputs = model.input_shape, model.output_shape
    if not (
        isinstance(shape, tuple)
        and len(shape) == 4
        and isinstance(shape[1], int)
        and shape[1:] == (shape[1], shape[1], 3)
        and isinstance(outputs, tuple)
        and len(outputs) == 2
        and isinstance(outputs[1], int)
    ):
        raise UserError(
            f"{what} must take square RGB images of one size and give one "
            f"number a class; it takes {shape} and gives {outputs}"
        )
    last = model.layers[-1]
    linear = keras.activations.linear
    if isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", linear) is not linear
    ):
        raise UserError(
            f"{what} must give logits; its last layer {last.name} has an "
            "activation, which would be applied twice"
        )
    try:
        known = backbones.available_backbones()
        found = backbones.canonical_name(get_backbone(model).name) in known
    except UserError:
        found = False
    if not found:
        raise UserError(
            f"{what} has no backbone of keras.applications inside, whose "
            "preprocessing it would want: it was not saved by this program"
        )


def check_backbone(model: keras.Model, path: object, backbone: str) -> None:
    """Checks that a loaded classifier stands on the backbone of the flags.

    Raises:
      ConfigError: it stands on another, which wants other preprocessing.
    """
    own = get_backbone(model).name
    if backbones.canonical_name(own) != backbones.canonical_name(backbone):
        raise ConfigError(
            f"--backbone must be {own}, which {path} stands on; got {backbone}"
        )


def check_classifier(
    model: keras.Model, path: object, image_size: int, num_classes: int
) -> None:
    """Checks that a loaded classifier fits the data.

    Raises:
      UserError: it has another input size or number of classes.
    """
    size, classes = model.input_shape[1], model.output_shape[-1]
    if size != image_size:
        raise UserError(
            f"{path} takes images of {size} pixels: pass --image_size={size}; "
            f"got {image_size}"
        )
    if classes != num_classes:
        raise UserError(
            f"{path} tells {classes} classes apart; the data set has "
            f"{num_classes}"
        )
