"""Fits what lets one trust a stage's answers, on images it hasn't seen."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from flowers17_tfdata import terminal, timings
from flowers17_tfdata.data import splitting
from flowers17_tfdata.errors import counted
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import backbones, classifier, saved_models, trust
from flowers17_tfdata.models.trust import Trust
from flowers17_tfdata.phases import train_data
from flowers17_tfdata.phases.train_data import Splits
from flowers17_tfdata.scoring import calibration, conformal
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.session import Session
from flowers17_tfdata.training import inference, linear_head
from flowers17_tfdata.training.linear_head import LinearHead
from flowers17_tfdata.training.preemption import StopRequest

_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """A stage whose training has ended.

    Attributes:
      name: `transfer`, `finetune` or `refit`.
      method: `transfer` or `finetune`, which refit repeats.
      model: the classifier.
      splits: the splits that it was trained and validated on.
      features: the features of the frozen backbone, for training and for
        validation; None: the backbone was trained, or they aren't cached.
      head: the head that was solved for, if it was.
      stop: the request to stop.
    """

    name: str
    method: str
    model: keras.Model
    splits: Splits
    features: tuple[Features, Features | None] | None
    head: LinearHead | None
    stop: StopRequest


def calibrate(session: Session, stage: TrainedStage) -> Trust | None:
    """Fits a `Trust`, and divides the model's logits by its temperature.

    It is fitted on validation. After a refit, no image is left: the thresholds
    are those of the model before, and a solved head is calibrated on its
    out-of-fold answers.

    Returns:
      None if the model has a single class, or an output layer or a head that
      another program made.

    Raises:
      Preempted: the process was asked to stop.
    """
    if not classifier.can_be_calibrated(stage.model):
        return None
    with timings.measure(session.output, f"{stage.name}: calibration"):
        if stage.splits.validation is None:
            fitted = _after_refit(session, stage)
        else:
            fitted = _on_validation(session, stage)
        if fitted is None:
            return None
        with session.strategy.scope():
            classifier.divide_logits(stage.model, fitted.temperature)
    terminal.say(
        f"{stage.name}: calibrated on {counted(fitted.num_examples, 'image')} "
        f"that were held out, temperature {fitted.temperature:.2f}"
    )
    return fitted


def _on_validation(session: Session, stage: TrainedStage) -> Trust:
    """Fits on the validation split."""
    validation = stage.splits.validation
    assert validation is not None
    if stage.features and stage.features[1]:
        train = stage.features[0]
        own = train.values[0]
        logits = classifier.head_logits(stage.model, own)
        held_out = stage.features[1].values[0]
        held_out_logits = classifier.head_logits(stage.model, held_out)
    else:
        logits, own = _run(session, stage, stage.splits.train, "train")
        train = Features(own[np.newaxis], stage.splits.train.labels)
        held_out_logits, held_out = _run(
            session, stage, validation, "validation"
        )
    surroundings = trust.fit_surroundings(*train, logits.shape[1])
    return trust.fit(
        surroundings,
        (logits, own),
        (held_out_logits, held_out, validation.labels),
    )


def _after_refit(session: Session, stage: TrainedStage) -> Trust | None:
    """Adapts what was fitted to the model before.

    Returns:
      None if that was trained by an earlier version.
    """
    path = session.model_path(stage.method)
    fitted = saved_models.read_trust(path)
    if fitted is None:
        terminal.say(
            f"{stage.name}: not calibrated, because {path} is of an earlier "
            "version: train in another --workdir"
        )
        return None
    # The features of a frozen backbone stay the same, and so does what was
    # fitted on them, unless its statistics are measured on these images.
    if not stage.features or session.config.model.weights == "none":
        if stage.features:
            train = stage.features[0]
            seen = train.values[0]
            logits = classifier.head_logits(stage.model, seen)
        else:
            images = stage.splits.train
            logits, seen = _run(session, stage, images, "train and validation")
            train = Features(seen[np.newaxis], images.labels)
        surroundings = trust.fit_surroundings(*train, logits.shape[1])
        fitted = trust.after_refit(fitted, surroundings, logits, seen)
    if stage.features and stage.head:
        return _out_of_fold(session, stage, stage.features[0], fitted)
    return fitted


def _out_of_fold(
    session: Session, stage: TrainedStage, features: Features, fitted: Trust
) -> Trust:
    """Calibrates a solved head on out-of-fold answers to its images."""
    assert stage.head is not None
    labels, num_classes = features.labels, len(stage.head.bias)
    folds = _folds(session, stage.splits, labels)
    judged = splitting.known_elsewhere(labels, folds)
    if judged.sum() < len(labels) / 2:
        return fitted
    logits = linear_head.out_of_fold_logits(
        features,
        num_classes,
        folds,
        weight_decay=stage.head.weight_decay,
        example_weights=train_data.example_weights(session, labels),
        stop=stage.stop,
    )[judged]
    temperature = calibration.fit_temperature(logits, labels[judged])
    sets = conformal.fit_sets(softmax(logits / temperature), labels[judged])
    return fitted.with_temperature(temperature, sets, int(judged.sum()))


def _folds(session: Session, splits: Splits, labels: np.ndarray) -> np.ndarray:
    """Returns the fold of each image, with near-duplicates in one fold."""
    places = [
        (split, image_id)
        for split, examples in splits.trained.items()
        for image_id in examples.ids
    ]
    groups = session.source.known_groups(places)
    seed = session.config.runtime.seed
    return splitting.out_of_fold_parts(labels, groups, _FOLDS, seed)


def _run(
    session: Session, stage: TrainedStage, examples: Examples, title: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits `[n, classes]` and features `[n, channels]` of images."""
    with session.strategy.scope():
        model = classifier.with_features(stage.model)
    size = session.config.optimization.global_batch_size
    options = dataclasses.replace(session.config.input, train_scale=1.0)
    outputs = inference.collect(
        inference.ImageInference(
            model,
            session.strategy,
            options,
            backbones.get_preprocess(session.config.model.backbone),
        ).outputs(examples, size),
        f"calibration: {title}",
        input_pipeline.steps_per_epoch(examples.num_examples, size),
        stage.stop,
    )
    num_classes = stage.model.output_shape[-1]
    return outputs[:, :num_classes], outputs[:, num_classes:]
