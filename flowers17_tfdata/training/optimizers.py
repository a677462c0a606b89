"""Learning-rate schedules and optimizers."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from flowers17_tfdata.config import OptimizationConfig


def learning_rate_schedule(
    config: OptimizationConfig, peak: float, epochs: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 0 to `peak`, then cosine to 0 or constant.

    Returns:
      Schedule over the steps of a stage. The warm-up is cut to half of a stage
      that is shorter than twice its length.
    """
    total_steps = epochs * steps_per_epoch
    warmup_steps = min(
        round(config.warmup_epochs * steps_per_epoch), total_steps // 2
    )
    # A constant rate is a cosine whose floor is its peak.
    floor = 1.0 if config.schedule == "constant" else 0.0
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else peak,
        decay_steps=total_steps - warmup_steps,
        alpha=floor,
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def make_optimizer(
    name: str,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    config: OptimizationConfig,
    *,
    scale_loss: bool,
    rate_scales: Sequence[float] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds `sgd` (with momentum), `adam` or `adamw`.

    Args:
      name: of the optimizer.
      learning_rate: by step.
      config: momentum, weight decay, moving average of the weights.
      scale_loss: whether to wrap it for dynamic loss scaling (float16).
      rate_scales: each variable's share of the learning rate, in their order;
        None: all of it. Weight decay goes by the whole rate.
    """
    average = {"use_ema": bool(config.ema_decay)}
    if config.ema_decay:
        average["ema_momentum"] = config.ema_decay
    if name == "sgd":
        optimizer = _scaled(keras.optimizers.SGD, rate_scales)(
            learning_rate, momentum=config.momentum, **average
        )
    elif name == "adam":
        optimizer = _scaled(keras.optimizers.Adam, rate_scales)(
            learning_rate, **average
        )
    else:
        optimizer = _scaled(keras.optimizers.AdamW, rate_scales)(
            learning_rate, weight_decay=config.weight_decay, **average
        )
        # Decay pulls towards 0; for an offset or a scale that is no prior.
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _scaled(
    optimizer_class: type[keras.optimizers.Optimizer],
    scales: Sequence[float] | None,
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
