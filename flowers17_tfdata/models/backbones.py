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


def build_backbone(name: str, image_size: int, weights: str) -> keras.Model:
    """Builds a backbone without its top and loads its weights.

    Args:
      name: e.g. `inception_v3`; case, `_` and `-` don't matter.
      image_size: height and width, pixels.
      weights: `imagenet`, `none`, or a file that `load_weights` reads.

    Returns:
      Model from `[batch, image_size, image_size, 3]` to a feature map. The
      canonical form of its name is the backbone's, so that a saved classifier
      tells which preprocessing it wants.

    Raises:
      ConfigError: no such backbone, or the size is too small for it.
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
    return backbone


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
