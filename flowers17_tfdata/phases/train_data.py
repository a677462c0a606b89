"""The data of a training stage: images, or the backbone's features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from flowers17_tfdata import files, machine, terminal, timings
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.input import (
    augmentation,
    feature_cache,
    input_pipeline,
)
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import backbones, batch_norm, classifier, folding
from flowers17_tfdata.session import TRAINING_SPLITS, Session
from flowers17_tfdata.training import inference
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.stage import StageData

# The number of images that batch-norm statistics are measured on: once before
# the transfer stage, and after each epoch that trains batch-norm.
_CALIBRATION_IMAGES = 512
_EPOCH_CALIBRATION_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits that a stage trains and validates on.

    Attributes:
      trained: the splits to train on, by name.
      train: the examples of all these splits.
      validation: the examples to validate on; None: they are trained on.
    """

    trained: Mapping[str, Examples]
    train: Examples
    validation: Examples | None


def load_examples(session: Session) -> dict[str, Examples]:
    """Decodes the splits that a run trains and validates on, once."""
    return {
        split: examples_lib.load_examples(
            session.source, split, session.config.input
        )
        for split in TRAINING_SPLITS
    }


def select_splits(
    session: Session, stage: str, examples: dict[str, Examples]
) -> Splits:
    """Selects the splits that a stage trains and validates on."""
    trained = TRAINING_SPLITS if stage == "refit" else ("train",)
    return Splits(
        {split: examples[split] for split in trained},
        examples_lib.join_examples([examples[split] for split in trained]),
        None if "validation" in trained else examples["validation"],
    )


def class_weights(session: Session, labels: np.ndarray) -> np.ndarray | None:
    """Returns the weight of each class in the loss; None: 1 for all."""
    if session.config.optimization.class_weights == "none":
        return None
    return balanced_class_weights(labels, len(session.source.class_names))


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns weights that give every class the same share of the loss.

    The weight of class c is `n / (num_classes * n_c)` (G. King and L. Zeng,
    "Logistic regression in rare events data", Political Analysis 9 (2001)),
    with n_c images in class c and `num_classes` classes that have images. The
    mean weight of all examples is 1.

    Args:
      labels: int64 `[n]`, the classes of the examples.
      num_classes: the number of classes of the data set.

    Returns:
      float32 `[num_classes]`; 0 for a class without examples.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def image_data(session: Session, splits: Splits, method: str) -> StageData:
    """Returns the images of a stage, augmented anew in every epoch.

    Args:
      session: the open run.
      splits: the splits to train and validate on.
      method: `transfer` or `finetune`.
    """
    config, options = session.config, session.config.input
    if method == "transfer":
        # The features must be those of the images to predict.
        options = dataclasses.replace(options, train_scale=1.0)
    size = config.optimization.global_batch_size
    num_measured = _num_measured_images(config, method)
    preprocess = backbones.get_preprocess(config.model.backbone)
    arguments: dict[str, Any] = {
        "config": options,
        "preprocess": preprocess,
        "global_batch_size": size,
        "compute_dtype": session.compute_dtype,
    }
    weights = class_weights(session, splits.train.labels)

    def make_train(initial_epoch, initial_step, context):
        return input_pipeline.make_train_dataset(
            splits.train,
            seed=config.runtime.seed,
            initial_epoch=initial_epoch,
            initial_step=initial_step,
            input_context=context,
            class_weights=weights,
            **arguments,
        )

    def make_validation(context):
        return input_pipeline.make_eval_dataset(
            splits.validation, input_context=context, **arguments
        )

    statistics = None
    if num_measured:
        batches = input_pipeline.make_eval_dataset(splits.train, **arguments)
        statistics = batches.take(max(1, num_measured // size))

    return StageData(
        num_examples=splits.train.num_examples,
        make_train=make_train,
        make_validation=make_validation if splits.validation else None,
        statistics=statistics,
        device_stage=input_pipeline.make_device_stage(
            options, preprocess, session.compute_dtype
        ),
    )


def _num_measured_images(config: Config, method: str) -> int:
    """Returns the number of images to measure batch-norm statistics on.

    It is 0 if they are known (those of ImageNet) and don't change.
    """
    if method == "transfer":
        return _CALIBRATION_IMAGES if config.model.weights == "none" else 0
    return _EPOCH_CALIBRATION_IMAGES if config.model.trains_batch_norm else 0


def extract_features(
    session: Session,
    splits: Splits,
    images: StageData,
    model: keras.Model,
    stop: StopRequest,
) -> tuple[Features, Features | None]:
    """Returns the features of the frozen backbone, computed or cached.

    Args:
      session: the open run.
      splits: the splits to train and validate on.
      images: the images of these splits.
      model: the classifier. If its batch-norm has no statistics, they are
        measured first.
      stop: the request to stop.

    Returns:
      The features to train on, and those to validate on, if any.

    Raises:
      Preempted: the process was asked to stop.
    """
    config = session.config
    if images.statistics is not None:
        batch_norm.measure_statistics(model, images.statistics_batches())
    extractor = _get_extractor(session, model)
    digest = inference.weights_digest(extractor)
    views = augmentation.num_views(config.input, config.input.feature_views)

    def extract(name: str, examples: Examples, num_views: int) -> Features:
        return _cached_features(
            session, extractor, digest, name, examples, num_views, stop
        )

    with timings.measure(session.output, "transfer: features"):
        parts = [
            extract(name, examples, views)
            for name, examples in splits.trained.items()
        ]
        train = Features(
            np.concatenate([part.values for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
        )
        if splits.validation is None:
            return train, None
        # A refit trains on all views of these images.
        count = views if config.optimization.refit else 1
        return train, extract("validation", splits.validation, count)


def _cached_features(
    session: Session,
    extractor: keras.Model,
    weights_digest: str,
    name: str,
    examples: Examples,
    num_views: int,
    stop: StopRequest,
) -> Features:
    """Returns the features of a split, computed or cached."""
    config = session.config
    key = feature_cache.cache_key(
        {
            "weights": weights_digest,
            "backbone": config.model.backbone,
            "images": examples.images.digest(),
            "image_size": config.input.image_size,
            "views": _views_key(config, num_views),
            "precision": session.precision,
            "versions": machine.versions(),
        }
    )
    file = f"features/{key}.npz"
    path, start = session.workdir / file, time.perf_counter()
    arrays = feature_cache.load(path) or {}
    # All workers must take part in computing them.
    found = session.workers.all(bool(arrays))
    if not found:
        values = _extract_views(
            session, extractor, name, examples, num_views, stop
        )
        arrays = {"values": values}
        files.write_arrays(
            session.output / file, arrays, f"the feature cache {path}"
        )
    terminal.say(
        f"features of {name}, {num_views} view(s), "
        + (f"from {path}" if found else f"saved to {path}")
        + f", {time.perf_counter() - start:.1f} s"
    )
    return Features(arrays["values"], examples.labels)


def head_data(
    session: Session, train: Features, validation: Features | None
) -> StageData:
    """Returns the data of a head that trains on features in steps."""
    config = session.config
    size = config.optimization.global_batch_size
    weights = class_weights(session, train.labels)

    def make_train(initial_epoch, initial_step, context):
        return feature_cache.make_train_dataset(
            train,
            global_batch_size=size,
            seed=config.runtime.seed,
            initial_epoch=initial_epoch,
            initial_step=initial_step,
            input_context=context,
            class_weights=weights,
        )

    def make_validation(context):
        return feature_cache.make_eval_dataset(
            validation, global_batch_size=size, input_context=context
        )

    return StageData(
        len(train.labels),
        make_train,
        make_validation if validation is not None else None,
    )


def _get_extractor(session: Session, model: keras.Model) -> keras.Model:
    """Returns the model that computes the features, batch-norm folded."""
    extractor = classifier.get_feature_extractor(model)
    with session.strategy.scope():
        return folding.fold_batch_norm(extractor)


def _views_key(config: Config, num_views: int) -> dict[str, Any]:
    """Returns what the views of an image depend on, besides the image."""
    key: dict[str, Any] = {"count": num_views}
    if num_views > augmentation.num_fixed_views(config.input):
        key |= dataclasses.asdict(config.input) | {"train_scale": 1.0}
        key |= {"seed": config.runtime.seed}
        # Where images are kept changes no view.
        del key["cache"]
    elif num_views > 1:
        key |= {"augment_on": config.input.augment_on}
    return key


def _extract_views(
    session: Session,
    extractor: keras.Model,
    name: str,
    examples: Examples,
    num_views: int,
    stop: StopRequest,
) -> np.ndarray:
    """Returns features, float32 `[num_views, n, channels]`."""
    config = session.config
    # The size that the head must classify.
    options = dataclasses.replace(config.input, train_scale=1.0)
    size = config.optimization.global_batch_size

    def extract(view: int) -> np.ndarray:
        transforms = augmentation.view_transforms(
            options, config.runtime.seed, view, examples.num_examples
        )
        outputs = inference.outputs_of(
            extractor,
            session.strategy,
            examples,
            options,
            backbones.get_preprocess(config.model.backbone),
            global_batch_size=size,
            transforms=transforms,
        )
        return inference.collect(
            outputs,
            f"features of {name}, view {view + 1}/{num_views}",
            input_pipeline.steps_per_epoch(examples.num_examples, size),
            stop,
        )

    return np.stack([extract(view) for view in range(num_views)])
