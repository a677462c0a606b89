"""The trained network that every format contains, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.models import classifier, folding
from flowers17_tfdata.models import trust as trusts
from flowers17_tfdata.models.trust import Trust

# What `trust.answer` returns, as arrays.
Answers = dict[str, np.ndarray]

# Names of dtypes and of dtype policies.
_HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def to_float32(model: keras.Model) -> keras.Model:
    """Rebuilds a model so that all of it computes in float32.

    Half precision suits the hardware of the training: on other machines, and
    in converters, it is slow or missing. The weights are float32 already.

    Args:
      model: a functional model; it stays as it is.

    Returns:
      A model with the same layers and weights.
    """
    config = _without_half(model.get_config())
    policy = keras.config.dtype_policy()
    # A nested functional model's config doesn't contain its policy.
    keras.config.set_dtype_policy("float32")
    try:
        rebuilt = type(model).from_config(config)
    finally:
        keras.config.set_dtype_policy(policy)
    folding.copy_variables(model, rebuilt)
    return rebuilt


def _without_half(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without_half(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_half(v) for v in config)
    is_half = isinstance(config, str) and config in _HALF
    return "float32" if is_half else config


class Network(tf.Module):
    """A classifier with its preprocessing and all its answers.

    It is saved as plain TensorFlow: loading it needs no Keras.

    Args:
      model: a float32 model that maps preprocessed images to logits.
      preprocess: see `backbones.get_preprocess`.
      trust: what was fitted to the model, if anything.

    Attributes:
      image_size: height and width of the images, pixels.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
        trust: Trust | None,
    ):
        super().__init__(name="network")
        self.image_size = model.input_shape[1]
        # tf.Module finds TensorFlow's variables, but not Keras's.
        self._weights = [variable.value for variable in model.weights]
        if trust is not None:
            # Not joined to one output, in which int8 would give both one scale.
            model = classifier.with_both_outputs(model)

        def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = model(preprocess(images), training=False)
            logits, features = outputs if trust is not None else (outputs,) * 2
            return trusts.answer(logits, features, trust)

        # A closure: TensorFlow would try to save the layers themselves.
        self.answer = answer

    def function(self, batch_size: int | None = None) -> Callable[..., Any]:
        """Returns `answer` as a TensorFlow function.

        `answer` maps a batch of images, float32 `[batch, image_size,
        image_size, 3]` in [0, 255], RGB, to what `trust.answer` returns. The
        function calls its argument `image`.

        Args:
          batch_size: images per batch; None: any number, without a new trace.
        """
        size = self.image_size
        return tf.function(
            lambda image: self.answer(image),
            input_signature=[
                tf.TensorSpec([batch_size, size, size, 3], tf.float32, "image")
            ],
        )

    def save(self, folder: str, batch_size: int | None) -> None:
        """Writes a SavedModel for a converter; its signature is `function`."""
        module = tf.Module()
        module.network = self
        module.classify = self.function(batch_size)
        tf.saved_model.save(module, folder, signatures=module.classify)

    def runner(self) -> Callable[[np.ndarray], Answers]:
        """Returns a function from uint8 images to answers."""
        function = self.function()

        def run(images: np.ndarray) -> Answers:
            return to_numpy(function(images.astype(np.float32)))

        return run


def to_numpy(answers: Mapping[str, tf.Tensor]) -> Answers:
    """Returns answers as arrays."""
    return {name: value.numpy() for name, value in answers.items()}


def refused(format_name: str, reason: BaseException | str) -> UserError:
    """Returns the error for a network that a converter can't convert."""
    return UserError(
        f"--export_formats: {format_name} can't be made of this network "
        f"({one_line(reason, 200)}): leave it out"
    )
