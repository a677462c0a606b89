"""Learning-rate schedules and optimizers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from flowers17_tfdata.config.optimization import OptimizationConfig

_MOMENTUM = 0.9


def learning_rate_schedule(
    config: OptimizationConfig,
    peak: float,
    epochs: int,
    steps_per_epoch: int,
    restarts: Sequence[int] = (),
) -> keras.optimizers.schedules.LearningRateSchedule:
    """One epoch of linear warm-up to `peak`, then cosine to 0; or constant.

    Args:
      config: holds the form of the schedule.
      peak: the highest learning rate.
      epochs: the number of epochs of the stage.
      steps_per_epoch: the number of steps of an epoch.
      restarts: the numbers of epochs after which the schedule starts again,
        increasing, each below `epochs`.

    Returns:
      A schedule over the steps of a stage. Each warm-up takes at most half of
      the steps up to the next start.
    """
    starts = [epoch * steps_per_epoch for epoch in (0, *restarts, epochs)]
    parts = [
        _warmup_and_decay(config, peak, end - start, steps_per_epoch)
        for start, end in itertools.pairwise(starts)
    ]
    return _InTurn(starts, parts) if restarts else parts[0]


def _warmup_and_decay(
    config: OptimizationConfig, peak: float, num_steps: int, warmup_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    constant = config.schedule == "constant"
    warmup_steps = 0 if constant else min(warmup_steps, num_steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else peak,
        decay_steps=num_steps - warmup_steps,
        # A cosine that ends at its peak is constant.
        alpha=1.0 if constant else 0.0,
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


class _InTurn(keras.optimizers.schedules.LearningRateSchedule):
    """Schedules that follow each other.

    Args:
      starts: the first step of each schedule, increasing.
      parts: the schedules, each over the steps since its start.
    """

    def __init__(self, starts, parts):
        super().__init__()
        self._starts = starts
        self._parts = parts

    def __call__(self, step):
        step = tf.cast(step, tf.int64)
        rate = self._parts[0](step)
        for start, part in zip(self._starts[1:], self._parts[1:], strict=False):
            rate = tf.where(step < start, rate, part(step - start))
        return rate


def make_optimizer(
    name: str,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    config: OptimizationConfig,
    *,
    scale_loss: bool,
    rate_scales: Sequence[tf.Tensor] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds `sgd` (with momentum), `adam` or `adamw`.

    Args:
      name: the optimizer's name.
      learning_rate: the schedule by step.
      config: the weight decay of `adamw`.
      scale_loss: whether to add dynamic loss scaling, for float16.
      rate_scales: each weight's share of the learning rate, float32, a tensor
        for each flat variable (see `FlatWeights.flatten`); None: all 1. Weight
        decay takes the whole rate.

    Returns:
      The optimizer of flat variables; see `FlatWeights.variables`.
    """
    decay = {"weight_decay": config.weight_decay}
    optimizer_class, options = {
        "sgd": (keras.optimizers.SGD, {"momentum": _MOMENTUM}),
        "adam": (keras.optimizers.Adam, {}),
        "adamw": (keras.optimizers.AdamW, decay),
    }[name]
    optimizer = _scaled(optimizer_class, rate_scales)(learning_rate, **options)
    optimizer.exclude_from_weight_decay(var_names=["undecayed"])
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _scaled(
    optimizer_class: type[keras.optimizers.Optimizer],
    scales: Sequence[tf.Tensor] | None,
) -> type[keras.optimizers.Optimizer]:
    """Returns a subclass that scales each weight's learning rate."""
    if scales is None:
        return optimizer_class
    # Variables: a constant would be compiled into the program, and a tensor
    # sent to all replicas at every step.
    scales = [tf.Variable(scale, trainable=False) for scale in scales]

    class Scaled(optimizer_class):
        def update_step(self, gradient, variable, learning_rate):
            scale = scales[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * scale)

    # The optimizer's variables are named after its class.
    Scaled.__name__ = optimizer_class.__name__
    return Scaled
