"""The backbones of keras.applications, by name."""

from __future__ import annotations

import inspect
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    did_you_mean,
    one_line,
)


def canonical_name(name: str) -> str:
    """Returns a backbone's name in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def available_backbones() -> dict[str, Callable[..., keras.Model]]:
    """Returns `{canonical name: constructor}` of keras.applications."""
    return {
        canonical_name(name): constructor
        for name, constructor in vars(keras.applications).items()
        if inspect.isfunction(constructor)
        and "include_top" in inspect.signature(constructor).parameters
    }


def _constructor(name: str) -> Callable[..., keras.Model]:
    known = available_backbones()
    if canonical_name(name) not in known:
        raise ConfigError(
            "--backbone must name a keras.applications classifier; got "
            f"{name!r}{did_you_mean(canonical_name(name), known)}"
        )
    return known[canonical_name(name)]


def get_preprocess(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the backbone's own input normalization.

    The function maps float32 images in [0, 255], `[batch, height, width, 3]`,
    RGB, to what the published weights were trained on: [-1, 1] for
    inception_v3, mean-subtracted BGR for vgg16, unchanged for networks that
    rescale inside.

    Raises:
      ConfigError: no such backbone.
    """
    module = inspect.getmodule(_constructor(name))

    def preprocess(images):
        return module.preprocess_input(images, data_format="channels_last")

    return preprocess


def build_backbone(
    name: str, image_size: int, weights: str, end: str = "", taps: str = ""
) -> keras.Model:
    """Builds a backbone without its top and loads its weights.

    Args:
      name: e.g. `inception_v3`; case, `_` and `-` don't matter.
      image_size: height and width, pixels.
      weights: `imagenet`, `none`, or a file that `load_weights` reads, of the
        whole backbone.
      end: the last layer that is kept; '': all are.
      taps: see `--backbone_taps`.

    Returns:
      Model from `[batch, image_size, image_size, 3]` to a feature map. The
      canonical form of its name is the backbone's, so that a saved classifier
      tells which preprocessing it wants.

    Raises:
      ConfigError: no such backbone or layer, or the size is too small for it.
      UserError: the weights can't be had or are another architecture's.
    """
    constructor = _constructor(name)
    arguments: dict[str, Any] = {
        "include_top": False,
        "weights": "imagenet" if weights == "imagenet" else None,
        "input_shape": (image_size, image_size, 3),
    }
    # Keras's own default where it has one: some constructors look the weights'
    # file up by it. MobileNet's would hold the width and the size.
    default_name = inspect.signature(constructor).parameters["name"].default
    arguments["name"] = default_name or canonical_name(name)
    if weights not in ("imagenet", "none"):
        weights = os.path.expanduser(weights)
        _check_weights_file(weights, name)
    try:
        backbone = constructor(**arguments)
    except ValueError as error:
        raise ConfigError(
            f"--image_size or --backbone: {name} at {image_size} pixels: "
            f"{one_line(error)}"
        ) from error
    # keras.utils.get_file raises plain Exception.
    except Exception as error:
        if weights != "imagenet":
            raise
        raise DownloadFailed(
            f"--weights=imagenet: the weights of {name} can't be downloaded "
            f"({one_line(error, 160)}); pass a local file with "
            "--weights=PATH, or --weights=none to train from scratch"
        ) from error
    if weights not in ("imagenet", "none"):
        _load_weights(backbone, name, weights)
    if end:
        output = _feature_map(backbone, end, "--backbone_end")
        backbone = keras.Model(backbone.input, output, name=backbone.name)
    names = [n.strip() for n in taps.split(",") if n.strip()]
    return _tap(backbone, names) if names else backbone


def _feature_map(backbone: keras.Model, name: str, flag: str):
    """Returns a layer's output, `[batch, height, width, channels]`."""
    maps = [layer.name for layer in backbone.layers if _is_map(layer)]
    if name not in maps:
        blocks = [n for n in maps if n.startswith("mixed")] or maps
        raise ConfigError(
            f"{flag} must name a layer of {backbone.name} that gives a "
            f"feature map ({', '.join(blocks[:24])}); got {name!r}"
            f"{did_you_mean(name, maps)}"
        )
    return backbone.get_layer(name).output


def _tap(backbone: keras.Model, names: list[str]) -> keras.Model:
    """Returns a backbone whose feature map has those of earlier layers in it.

    Averaged over neighbouring positions to its size, and before its own
    channels: one map, for whatever comes after it.
    """
    own = backbone.output
    maps = [
        _halved(_feature_map(backbone, name, "--backbone_taps"), own, name)
        for name in names
    ]
    joined = keras.layers.Concatenate(name="taps")([*maps, own])
    return keras.Model(backbone.input, joined, name=backbone.name)


def _halved(features, like, name: str):
    """Averages a feature map down to the size of another one.

    By halves, each rounded as the network rounds it: so the sizes agree for
    images of other sizes, too.
    """
    for pool_size, padding in ((3, "valid"), (2, "same"), (2, "valid")):
        x = features
        while min(x.shape[1:3]) > max(like.shape[1], pool_size - 1):
            x = keras.layers.AveragePooling2D(
                pool_size, 2, padding, name=f"tap_{name}_{x.shape[1]}"
            )(x)
        if x.shape[1:3] == like.shape[1:3]:
            return x
    raise ConfigError(
        f"--backbone_taps: the feature map of {name}, {features.shape[1]} by "
        f"{features.shape[2]}, can't be halved to that of the last layer, "
        f"{like.shape[1]} by {like.shape[2]}"
    )


def _is_map(layer: keras.layers.Layer) -> bool:
    is_input = isinstance(layer, keras.layers.InputLayer)
    return not is_input and len(layer.output.shape) == 4


def _check_weights_file(path: str, name: str) -> None:
    if canonical_name(name).startswith("efficientnetb"):
        raise ConfigError(
            "--weights must be imagenet or none for efficientnetb0 to b7 "
            "(Keras scales their inputs differently without its own download);"
            f" got {path!r}"
        )
    if not pathlib.Path(path).is_file():
        raise UserError(
            "--weights must be imagenet, none or an existing file; got "
            f"{path!r}"
        )
    if not path.endswith((".weights.h5", ".h5")):
        raise ConfigError(
            f"--weights file must end in .weights.h5 or .h5; got {path!r}"
        )


def _load_weights(backbone: keras.Model, name: str, path: str) -> None:
    try:
        with warnings.catch_warnings():
            # One a layer, ahead of the error that says it all.
            warnings.filterwarnings("ignore", "Skipping nested container")
            backbone.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"--weights {path} are not weights of {name} without its top: "
            f"{one_line(error, 160)}"
        ) from error
    for variable in backbone.variables:
        if not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
            raise UserError(
                f"--weights {path} hold NaN or infinity in {variable.path}"
            )
