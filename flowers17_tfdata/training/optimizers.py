"""Learning-rate schedules and optimizers."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from flowers17_tfdata.config.optimization import OptimizationConfig

_MOMENTUM = 0.9
_WARMUP_EPOCHS = 1


def learning_rate_schedule(
    config: OptimizationConfig, peak: float, epochs: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """One epoch of linear warm-up to `peak`, then cosine to 0; or constant.

    Returns:
      Schedule over the steps of a stage. The warm-up is cut to half of a stage
      that is shorter than twice its length.
    """
    total_steps = epochs * steps_per_epoch
    if config.schedule == "constant":
        # A cosine whose floor is its peak.
        return keras.optimizers.schedules.CosineDecay(
            peak, decay_steps=total_steps, alpha=1.0
        )
    warmup_steps = min(_WARMUP_EPOCHS * steps_per_epoch, total_steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else peak,
        decay_steps=total_steps - warmup_steps,
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def make_optimizer(
    name: str,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    config: OptimizationConfig,
    *,
    scale_loss: bool,
    rate_scales: Sequence[np.ndarray] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds `sgd` (with momentum), `adam` or `adamw`.

    Args:
      name: of the optimizer.
      learning_rate: by step.
      config: weight decay.
      scale_loss: whether to wrap it for dynamic loss scaling (float16).
      rate_scales: each variable's share of the learning rate, in their order,
        broadcast to the variable's shape; None: all of it. Weight decay goes by
        the whole rate.
    """
    if name == "sgd":
        optimizer = _scaled(keras.optimizers.SGD, rate_scales)(
            learning_rate, momentum=_MOMENTUM
        )
    elif name == "adam":
        optimizer = _scaled(keras.optimizers.Adam, rate_scales)(learning_rate)
    else:
        optimizer = _scaled(keras.optimizers.AdamW, rate_scales)(
            learning_rate, weight_decay=config.weight_decay
        )
        # Decay pulls towards 0; for an offset or a scale that is no prior.
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _scaled(
    optimizer_class: type[keras.optimizers.Optimizer],
    scales: Sequence[np.ndarray] | None,
) -> type[keras.optimizers.Optimizer]:
    """Returns the class with a learning rate for each variable."""
    if scales is None:
        return optimizer_class

    class Scaled(optimizer_class):
        def update_step(self, gradient, variable, learning_rate):
            scale = scales[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * scale)

    # The optimizer's variables are named after it.
    Scaled.__name__ = optimizer_class.__name__
    return Scaled
