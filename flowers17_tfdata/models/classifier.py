"""The network that is trained: a backbone and its head."""

from __future__ import annotations

import keras
import numpy as np

from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.models import backbones

_STANDARDIZATION = "standardization"

# The smallest standard deviation of a channel, as a fraction of the mean over
# all channels.
_LEAST_SPREAD = 0.01

# Rows of features that a head takes at once.
_HEAD_BATCH = 1024


def build_classifier(
    config: ModelConfig,
    *,
    image_size: int,
    num_classes: int,
    seed: int,
) -> keras.Model:
    """Builds the classifier, all of it trainable.

    Args:
      config: backbone, weights, head.
      image_size: height and width of the images, in pixels.
      num_classes: number of units of the last layer.
      seed: seed for the head's initial weights and dropout.

    Returns:
      A model from preprocessed images, float32 `[batch, image_size, image_size,
      3]` (see `backbones.get_preprocess`), to logits, float32 `[batch,
      num_classes]`.

    Raises:
      ConfigError: see `backbones.build_backbone`.
      UserError: see `backbones.build_backbone`.
    """
    keras.utils.set_random_seed(seed)
    backbone = backbones.build_backbone(
        config.backbone, image_size, config.weights
    )
    # Seeded again, so that the head's weights don't depend on how many random
    # numbers the backbone drew.
    keras.utils.set_random_seed(seed + 1)
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D(name="pooler")(backbone(inputs))
    if config.head_units:
        x = keras.layers.Dense(
            config.head_units, activation="relu", name="head_dense"
        )(x)
    x = keras.layers.Dropout(config.dropout, seed=seed, name="head_dropout")(x)
    logits = keras.layers.Dense(
        num_classes,
        # A linear head starts from zeros (as in A. Kolesnikov et al., "Big
        # Transfer", ECCV 2020): the sum of thousands of channels under random
        # weights is an error that few images don't train away. Below a hidden
        # layer, zeros would let no gradient through.
        kernel_initializer="glorot_uniform" if config.head_units else "zeros",
        # Under every policy: softmax and the loss lose too much precision in
        # half precision.
        dtype="float32",
        name="predictions",
    )(x)
    return keras.Model(inputs, logits, name="classifier")


def get_backbone(model: keras.Model) -> keras.Model:
    """Returns the backbone of a classifier that was built here or loaded."""
    return next(x for x in model.layers if isinstance(x, keras.Model))


def get_feature_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a classifier below its head.

    It shares the classifier's layers, and maps images to the head's input,
    `[batch, channels]`.
    """
    return keras.Model(model.inputs, model.get_layer("pooler").output)


def with_features(model: keras.Model) -> keras.Model:
    """Returns a model with the logits and the head's input as one output.

    It shares the classifier's layers. The output is float32 `[batch,
    num_classes + channels]`.
    """
    # Whatever the policy: half precision would round the logits.
    joined = keras.layers.Concatenate(dtype="float32", name="with_features")(
        with_both_outputs(model).outputs
    )
    return keras.Model(model.input, joined)


def with_both_outputs(model: keras.Model) -> keras.Model:
    """Returns a model with two outputs: the logits, and the head's input.

    It shares the classifier's layers.
    """
    features = model.get_layer("pooler").output
    return keras.Model(model.input, [model.output, features])


def head_logits(model: keras.Model, features: np.ndarray) -> np.ndarray:
    """Runs the head of a classifier.

    Args:
      model: the classifier.
      features: float32 `[n, channels]`, the head's input.

    Returns:
      float32 `[n, num_classes]`.
    """
    layers = get_head_layers(model)[1:]
    parts = []
    for start in range(0, len(features), _HEAD_BATCH):
        x = keras.ops.convert_to_tensor(features[start : start + _HEAD_BATCH])
        for layer in layers:
            x = layer(x)
        parts.append(keras.ops.convert_to_numpy(x))
    return np.concatenate(parts)


def can_be_calibrated(model: keras.Model) -> bool:
    """Whether the logits can be divided by a temperature.

    False for a single class, and for a head of another program.
    """
    last = model.layers[-1]
    return (
        isinstance(last, keras.layers.Dense)
        and model.output_shape[-1] > 1
        and any(layer.name == "pooler" for layer in model.layers)
    )


def divide_logits(model: keras.Model, temperature: float) -> None:
    """Divides the logits of a classifier by a number, in its last weights."""
    last = model.layers[-1]
    last.set_weights([w / np.float32(temperature) for w in last.get_weights()])


def get_head_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooler and the layers above it, a chain."""
    layers = list(model.layers)
    return layers[layers.index(model.get_layer("pooler")) :]


def get_standardizing_head(
    model: keras.Model, features: np.ndarray
) -> keras.Model:
    """Returns the head of a classifier, to be trained on cached features.

    It shares the classifier's layers, so training it trains the classifier. It
    first scales each channel to mean 0 and variance 1: channels of layers far
    apart differ in scale by orders of magnitude, and one learning rate would be
    wrong for most. After training, `absorb_standardization` makes the
    classifier compute the same without that layer.

    Args:
      model: a classifier.
      features: the features of the train split, float32 `[..., channels]`.

    Returns:
      A model from features `[batch, channels]` to logits.
    """
    pooler, *layers = get_head_layers(model)
    mean, spread = mean_and_spread(features)
    inputs = keras.Input(pooler.output.shape[1:], name="features")
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
    """Returns the mean and standard deviation of each channel.

    `(features - mean) / spread` are the standardized features.

    Args:
      features: float32 `[..., channels]`.

    Returns:
      Both float64 `[channels]`. The deviation is at least a hundredth of the
      mean deviation over all channels: dividing by less would turn a channel
      that is constant on nearly all images into noise.
    """
    rows = features.reshape(-1, features.shape[-1])
    # Sums in float64, without a float64 copy of the features: it may not fit
    # into memory.
    mean = rows.mean(axis=0, dtype=np.float64)
    squares = np.einsum("nc,nc->c", rows, rows, dtype=np.float64)
    variance = squares / len(rows) - np.square(mean)
    spread = np.sqrt(np.maximum(variance, 0))
    spread = np.maximum(spread, _LEAST_SPREAD * spread.mean())
    spread[spread == 0] = 1.0
    return mean, spread


def for_raw_features(
    kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Converts a layer for standardized features into one for raw features.

    Args:
      kernel: `[channels, units]`, for standardized features.
      bias: `[units]`.
      mean: float64 `[channels]`; see `mean_and_spread`.
      spread: float64 `[channels]`.

    Returns:
      The kernel and the bias, float32, that give the same outputs for features
      that aren't standardized.
    """
    kernel = kernel / spread[:, np.newaxis]
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def absorb_standardization(head: keras.Model) -> None:
    """Changes the first dense layer of a trained head to take raw features.

    Args:
      head: from `get_standardizing_head`. Not to be used afterwards, as it
        would still standardize.
    """
    scaling = head.get_layer(_STANDARDIZATION)
    mean, variance = (
        keras.ops.convert_to_numpy(x).reshape(-1).astype(np.float64)
        for x in (scaling.mean, scaling.variance)
    )
    dense = next(x for x in head.layers if isinstance(x, keras.layers.Dense))
    kernel, bias = dense.get_weights()
    dense.set_weights(for_raw_features(kernel, bias, mean, np.sqrt(variance)))


def check_backbone(model: keras.Model, path: object, backbone: str) -> None:
    """Checks that a loaded classifier has the backbone that the flags name.

    Raises:
      ConfigError: it has another, which needs other preprocessing.
    """
    own = get_backbone(model).name
    if backbones.canonical_name(own) != backbones.canonical_name(backbone):
        raise ConfigError(
            f"--backbone must be {own}, the backbone of {path}; got {backbone}"
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
            f"{path} distinguishes {classes} classes; the data set has "
            f"{num_classes}"
        )
