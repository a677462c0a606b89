"""What a stage trains, on which data, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.optimization import StageOptions
from flowers17_tfdata.input.input_pipeline import Batch


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage trains and validates on.

    Attributes:
      num_examples: the number of training examples.
      make_train: from the keyword arguments `initial_epoch`, `initial_step`
        and `input_context` to the infinite training dataset.
      make_validation: from the keyword argument `input_context` to one pass
        over the validation examples; None: the stage isn't validated, and
        keeps its last epoch.
      statistics: batches of training examples, not augmented, on which
        batch-norm statistics are measured; None: they aren't measured.
      device_stage: from a replica's `Batch` to the model's inputs.
    """

    num_examples: int
    make_train: Callable[..., tf.data.Dataset]
    make_validation: Callable[..., tf.data.Dataset] | None
    statistics: tf.data.Dataset | None = None
    device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs

    def statistics_batches(self) -> Iterator[tf.Tensor]:
        """Returns the model's inputs for the batches of `statistics`."""
        assert self.statistics is not None
        return map(self.device_stage, self.statistics)


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What a stage trains, and how.

    Attributes:
      model: the model, with this stage's layers frozen, built in the strategy's
        scope. It takes images or features, whichever the stage's data holds.
      options: the epochs, the optimizer and the learning rate.
      training_model: a model that shares the layers of `model` and takes
        training images of another size; None: `model` itself.
      rate_scales: the factor of the learning rate for each trainable variable;
        None: 1 for all.
      steps_per_call: the number of training steps between two returns to
        Python.
      restarts: the numbers of epochs after which the learning-rate schedule
        starts again; empty if the stage was never continued.
    """

    model: keras.Model
    options: StageOptions
    training_model: keras.Model | None = None
    rate_scales: Sequence[np.ndarray] | None = None
    steps_per_call: int = 1
    restarts: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The kept epoch of a stage, and the wall time of all its epochs.

    Attributes:
      best_epoch: the number of the kept epoch.
      validation_accuracy: the kept epoch's accuracy on the validation split;
        None: the stage isn't validated.
      validation_loss: the kept epoch's loss on the validation split, nats;
        None: the stage isn't validated.
      seconds: the wall time of all epochs, seconds.
    """

    best_epoch: int
    validation_accuracy: float | None
    validation_loss: float | None
    seconds: float
