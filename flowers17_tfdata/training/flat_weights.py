"""The trained weights of a model, end to end in a few long variables."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import UserError
from flowers17_tfdata.models import batch_norm

# The length of a flat variable is a multiple of this. XLA vectorizes a loop on
# a CPU only if all threads get equal parts; 6720 = 64 * 3 * 5 * 7 is divisible
# by most numbers of cores. With an odd length, AdamW's update of 21.8 million
# weights took 37 ms instead of 15 (2 cores).
_MULTIPLE = 6720

# Offsets and scales. Weight decay pulls towards 0, which is no prior for them.
_UNDECAYED = ("bias", "beta", "gamma")


class _Group(NamedTuple):
    """The weights that share a flat variable.

    Attributes:
      dtype: the dtype that their layers compute in.
      indices: their places in `model.trainable_variables`.
      shapes: their shapes.
      flat: the flat variable, float32.
    """

    dtype: str
    indices: list[int]
    shapes: list[tuple[int, ...]]
    flat: keras.Variable


class FlatWeights:
    """Trains a model's weights in flat variables, and copies them back.

    A network has hundreds of variables. An optimizer that updates each of them
    by some forty operations is bound by the number of operations, not by their
    arithmetic. On flat variables the same optimizer needs a few, and so do
    casting the weights, scaling gradients and summing them over replicas.

    While a model is trained, the flat variables hold the weights, and those of
    the model are out of date: call `store` before anything else reads them, and
    `load` after anything else has changed them.

    Args:
      model: the model, its layers frozen or not, built in the strategy's scope.
        The current strategy's scope must be entered.

    Attributes:
      model: the model.
      variables: the flat variables. For each dtype that layers compute in
        there are up to two, float32 `[n]`: the weights that decay, and the
        others, whose variable's name begins with `undecayed`. n is the number
        of weights, padded with zeros to a multiple of 6720.

    Raises:
      UserError: a weight has a constraint, which flat variables can't keep.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._trained = model.trainable_variables
        dtypes = _compute_dtypes(model)
        members: dict[tuple[str, str], list[int]] = {}
        for index, variable in enumerate(self._trained):
            if variable.constraint is not None:
                raise UserError(
                    f"{variable.path} has a constraint, which training does "
                    "not support: build the backbone without it, or freeze it"
                )
            kind = "undecayed" if variable.name in _UNDECAYED else "decayed"
            members.setdefault((kind, dtypes[id(variable)]), []).append(index)
        self._groups = []
        for (kind, dtype), indices in members.items():
            values = [self._trained[k].value for k in indices]
            flat = keras.Variable(_concatenate(values), name=f"{kind}_{dtype}")
            shapes = [tuple(value.shape) for value in values]
            self._groups.append(_Group(dtype, indices, shapes, flat))
        self.variables = [group.flat for group in self._groups]
        # The statistics of trained batch-norm are measured after an epoch.
        # Moving averages of them would cost hundreds of operations in a step.
        self._unused = {
            id(variable)
            for layer in batch_norm.batch_norm_layers(model)
            for variable in (layer.moving_mean, layer.moving_variance)
        }

    def flatten(self, parts: Sequence[tf.Tensor | np.ndarray]) -> list:
        """Concatenates one value per weight, as the weights are.

        Args:
          parts: for each of the model's trainable variables a value of a shape
            that broadcasts to the variable's.

        Returns:
          A float32 tensor for each of `variables`, of the same shape, padded
          in the same way.
        """
        return [
            tf.cast(
                _concatenate(
                    [
                        _broadcast(parts[index], shape)
                        for index, shape in zip(
                            group.indices, group.shapes, strict=True
                        )
                    ]
                ),
                tf.float32,
            )
            for group in self._groups
        ]

    @contextlib.contextmanager
    def substituted(self) -> Iterator[list[tf.Tensor]]:
        """Lets the layers of the model compute with the flat variables.

        Yields:
          The weights that the layers read, in the order of the model's
          trainable variables, each in the dtype that its layer computes in. So
          they are cast once, whatever the number of layers. Regularizers
          read them, too.
        """
        weights = self._split(cast=True)
        with keras.StatelessScope(collect_losses=True) as scope:
            for variable, weight in zip(self._trained, weights, strict=True):
                # Not the argument of the scope, which would cast them back.
                scope.add_update((variable, weight))
            yield weights
        # The layers' own state, such as the seeds of dropout.
        for variable in self.model.non_trainable_variables:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in self._unused:
                variable.assign(value)

    def _split(self, *, cast: bool) -> list[tf.Tensor]:
        """Returns the weights in the order of the trainable variables."""
        weights: list[tf.Tensor] = [None] * len(self._trained)
        for group in self._groups:
            flat = tf.convert_to_tensor(group.flat)
            flat = tf.cast(flat, group.dtype) if cast else flat
            sizes = [math.prod(shape) for shape in group.shapes]
            padding = flat.shape[0] - sum(sizes)
            parts = tf.split(flat, [*sizes, padding])
            for index, shape, part in zip(
                group.indices, group.shapes, parts, strict=False
            ):
                weights[index] = tf.reshape(part, shape)
        return weights

    @tf.function
    def load(self) -> None:
        """Copies the weights of the model to the flat variables."""
        values = [variable.value for variable in self._trained]
        for flat, value in zip(
            self.variables, self.flatten(values), strict=True
        ):
            flat.assign(value)

    @tf.function
    def store(self) -> None:
        """Copies the flat variables to the weights of the model."""
        for variable, weight in zip(
            self._trained, self._split(cast=False), strict=True
        ):
            variable.assign(weight)


def _broadcast(value, shape: tuple[int, ...]) -> tf.Tensor:
    # An operation less for each gradient, which has the shape already.
    return value if value.shape == shape else tf.broadcast_to(value, shape)


def _concatenate(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Concatenates tensors of one dtype, padded with zeros."""
    parts = [tf.reshape(value, [-1]) for value in values]
    size = sum(part.shape[0] for part in parts)
    padding = tf.zeros([-size % _MULTIPLE], parts[0].dtype)
    return tf.concat([*parts, padding], axis=0)


def _compute_dtypes(model: keras.Model) -> dict[int, str]:
    """Returns the dtype that each trainable variable is read in, by its id."""
    dtypes = {}
    # Outer layers come first: the layer that owns a variable has the last word.
    for layer in model._flatten_layers():
        for variable in layer.trainable_variables:
            casts = layer.autocast and variable._autocast
            dtype = layer.compute_dtype if casts else variable.dtype
            dtypes[id(variable)] = dtype
    return dtypes
