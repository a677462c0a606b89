"""The backbones by name: those of keras.applications, and registered ones."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    did_you_mean,
    one_line,
)


class Backbone(NamedTuple):
    """A backbone that `--backbone` can name; see `register`.

    Attributes:
      build: builds the network without its top.
      preprocess: normalizes its input.
    """

    build: Callable[..., keras.Model]
    preprocess: Callable[[tf.Tensor], tf.Tensor]


_registered: dict[str, Backbone] = {}


def register(
    name: str,
    build: Callable[..., keras.Model],
    preprocess: Callable[[tf.Tensor], tf.Tensor],
) -> None:
    """Makes a network of your own available as a backbone.

    Register it at the start of every program that trains it or loads a model
    that stands on it: a saved classifier holds the backbone's name and layers,
    but not its preprocessing.

    Args:
      name: for `--backbone`; case, `_` and `-` don't matter. It replaces an
        earlier backbone of the same name, including one of keras.applications.
      build: `build(input_shape=..., weights=...)` returns the network without
        the top layers: a functional `keras.Model` from images of `input_shape`,
        `(height, width, 3)`, to a feature map `[batch, rows, columns,
        channels]`. As in keras.applications, `weights` is `"imagenet"` for
        published weights, or None for random ones. For `--weights=PATH` it is
        None, too, and the program loads the file into the model. `build` raises
        ValueError if it can't build such a model, e.g. because there are no
        published weights. Layer classes of your own need the decorator
        `keras.saving.register_keras_serializable`.
      preprocess: maps float32 RGB images in [0, 255], `[batch, height, width,
        3]`, to the range that the network takes. It is called inside tf.data
        and in exported models, so it uses TensorFlow operations only.
    """
    _registered[canonical_name(name)] = Backbone(build, preprocess)


def canonical_name(name: str) -> str:
    """Returns a backbone's name in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def _constructors() -> dict[str, str]:
    """Returns the functions of keras.applications by canonical name."""
    functions = inspect.getmembers(keras.applications, inspect.isfunction)
    return {canonical_name(name): name for name, _ in functions}


def available_backbones() -> dict[str, Backbone]:
    """Returns all backbones by canonical name."""
    found = {}
    for canonical, name in _constructors().items():
        constructor = getattr(keras.applications, name)
        found[canonical] = Backbone(
            functools.partial(constructor, include_top=False),
            sys.modules[constructor.__module__].preprocess_input,
        )
    return found | _registered


def _get(name: str) -> Backbone:
    known = available_backbones()
    if canonical_name(name) not in known:
        raise ConfigError(
            "--backbone must name a keras.applications classifier or a "
            f"registered backbone; got {name!r}"
            f"{did_you_mean(canonical_name(name), known)}"
        )
    return known[canonical_name(name)]


def get_preprocess(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that normalizes a backbone's input.

    The function maps float32 RGB images in [0, 255], `[batch, height, width,
    3]`, to the range that the published weights were trained on: [-1, 1] for
    inception_v3, mean-subtracted BGR for vgg16, unchanged for networks that
    rescale inside.

    Raises:
      ConfigError: there is no such backbone.
    """
    return _get(name).preprocess


def build_backbone(name: str, image_size: int, weights: str) -> keras.Model:
    """Builds a backbone without its top and loads its weights.

    Args:
      name: e.g. `inception_v3`; case, `_` and `-` don't matter.
      image_size: height and width of the images, in pixels.
      weights: `imagenet`, `none`, or the path of an HDF5 weights file.

    Returns:
      A model from `[batch, image_size, image_size, 3]` to a feature map. The
      canonical form of its name is the backbone's.

    Raises:
      ConfigError: there is no such backbone, or the images are too small.
      UserError: the weights can't be loaded, or don't fit the backbone.
    """
    build = _get(name).build
    weights = os.path.expanduser(weights)
    try:
        with warnings.catch_warnings():
            # Keras's MobileNets warn that they load the weights of 224 pixels.
            warnings.filterwarnings("ignore", ".*`input_shape` is undefined")
            backbone = build(
                input_shape=(image_size, image_size, 3),
                weights="imagenet" if weights == "imagenet" else None,
            )
    except ValueError as error:
        raise ConfigError(
            f"--backbone={name} can't be built for --image_size={image_size} "
            f"and --weights={weights}: {one_line(error)}"
        ) from error
    # keras.utils.get_file raises plain Exception.
    except Exception as error:
        if weights != "imagenet":
            raise
        raise DownloadFailed(
            f"--weights=imagenet: the weights of {name} can't be downloaded "
            f"({one_line(error, 160)}); pass a local file with "
            "--weights=PATH, or --weights=none to train from scratch",
            _constructors().get(canonical_name(name), ""),
        ) from error
    # The preprocessing of a saved classifier is found by this name. Keras's
    # MobileNets are named by their width and image size.
    if canonical_name(backbone.name) != canonical_name(name):
        backbone.name = canonical_name(name)
    if weights not in ("imagenet", "none"):
        _load_weights(backbone, name, weights)
    return backbone


def _other_backbone(name: str, path: str) -> str:
    """Returns a hint at the backbone after which a weights file is named."""
    stem = canonical_name(os.path.basename(path))
    named = [other for other in available_backbones() if other in stem]
    other = max(named, key=len, default=canonical_name(name))
    if other == canonical_name(name):
        return ""
    return f" (did you mean --backbone={other}?)"


def _load_weights(backbone: keras.Model, name: str, path: str) -> None:
    if canonical_name(name).startswith("efficientnetb"):
        raise ConfigError(
            "--weights must be imagenet or none for efficientnetb0 to b7 "
            "(Keras scales their inputs differently without its own download);"
            f" got {path!r}"
        )
    try:
        with warnings.catch_warnings():
            # Keras warns once for each layer before it raises the error.
            warnings.filterwarnings("ignore", "Skipping nested container")
            backbone.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"--weights {path} are not weights of {name} without its top"
            f"{_other_backbone(name, path)}: {one_line(error, 160)}"
        ) from error
    for variable in backbone.variables:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            raise UserError(
                f"--weights {path} hold NaN or infinity in {variable.path}"
            )
