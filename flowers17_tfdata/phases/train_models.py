"""The model that a training stage starts from."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.models import (
    classifier,
    depthwise,
    folding,
    freezing,
    saved_models,
)
from flowers17_tfdata.session import Session


class StageModel(NamedTuple):
    """The model of a stage.

    Attributes:
      model: the classifier, with the layers frozen that the stage keeps.
      channel_scales: `{layer name: factors}`, by which the kernels of the
        backbone were multiplied when frozen batch-norm was folded into them.
    """

    model: keras.Model
    channel_scales: Mapping[str, np.ndarray]


def build_stage_model(session: Session, method: str) -> StageModel:
    """Builds the model of a stage.

    Args:
      session: the open run.
      method: `transfer` or `finetune`.

    Raises:
      UserError: the model that fine-tuning starts from is missing or doesn't
        fit.
    """
    if method == "finetune":
        return _load_initial_model(session)
    config = session.config
    with session.strategy.scope():
        model = classifier.build_classifier(
            config.model,
            image_size=config.input.image_size,
            num_classes=len(session.source.class_names),
            seed=config.runtime.seed,
        )
        classifier.get_backbone(model).trainable = False
    return StageModel(model, {})


def initial_model_path(session: Session) -> str | pathlib.Path:
    """Returns the path of the model that fine-tuning starts from.

    Raises:
      UserError: the workdir holds no model of the transfer stage.
    """
    config = session.config
    path = config.model.init_from or session.model_path("transfer")
    if not pathlib.Path(path).exists() and not config.model.init_from:
        raise UserError(
            f"--phase={config.phase} needs {path}: run --phase=transfer in "
            "this --workdir first, or pass --init_from"
        )
    return path


def _load_initial_model(session: Session) -> StageModel:
    config, path = session.config, initial_model_path(session)
    num_classes = len(session.source.class_names)
    with session.strategy.scope():
        model = saved_models.load_classifier(path, "--init_from")
        classifier.check_classifier(
            model, path, config.input.image_size, num_classes
        )
        classifier.check_backbone(model, path, config.model.backbone)
        _check_policy(model, path, session.precision)
        trust = saved_models.read_trust(pathlib.Path(path))
        if trust is not None:
            # Calibration is no part of the training: it starts from the head
            # that was solved for.
            classifier.divide_logits(model, 1 / trust.temperature)
        backbone = classifier.get_backbone(model)
        unfreeze = config.model.unfreeze_from
        if unfreeze == "auto" and config.model.weights == "none":
            # Nothing in a random network is worth freezing.
            unfreeze = "all"
        freezing.unfreeze_from(
            backbone,
            unfreeze,
            config.input.image_size,
            keep_batch_norm=not config.model.trains_batch_norm,
        )
        scales = folding.merged_scales(backbone)
        model = folding.fold_batch_norm(model, frozen_only=True)
    depthwise.avoid_slow_gradient(model)
    return StageModel(model, scales)


def _check_policy(model: keras.Model, path: object, policy: str) -> None:
    own = classifier.get_backbone(model).layers[-1].dtype_policy.name
    if own != policy:
        raise ConfigError(
            f"--precision must be {own}, which {path} was trained in; got "
            f"{policy}"
        )
