"""The data of a training stage: images, or the backbone's features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowers17_tfdata.config.config import Config
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input import feature_cache, input_pipeline
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import backbones
from flowers17_tfdata.session import TRAINING_SPLITS, Session
from flowers17_tfdata.training.stage import StageData

# The number of images that batch-norm statistics are measured on: once before
# the transfer stage, and after each epoch that trains batch-norm.
_STATISTICS_IMAGES = 512
_EPOCH_STATISTICS_IMAGES = 256


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


def example_weights(session: Session, labels: np.ndarray) -> np.ndarray | None:
    """Returns the weight of each example in the loss; None: 1 for all.

    Args:
      session: the open run.
      labels: int64 `[n]`, the classes of the training examples.
    """
    weights = class_weights(session, labels)
    return None if weights is None else weights[labels]


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
    make_validation = None
    if splits.validation is not None:
        make_validation = functools.partial(
            input_pipeline.make_eval_dataset, splits.validation, **arguments
        )
    statistics = None
    if num_measured:
        batches = input_pipeline.make_eval_dataset(splits.train, **arguments)
        statistics = batches.take(max(1, num_measured // size))

    return StageData(
        num_examples=splits.train.num_examples,
        make_train=functools.partial(
            input_pipeline.make_train_dataset,
            splits.train,
            seed=config.runtime.seed,
            class_weights=class_weights(session, splits.train.labels),
            **arguments,
        ),
        make_validation=make_validation,
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
        return _STATISTICS_IMAGES if config.model.weights == "none" else 0
    return _EPOCH_STATISTICS_IMAGES if config.model.trains_batch_norm else 0


def head_data(
    session: Session, train: Features, validation: Features | None
) -> StageData:
    """Returns the data of a head that trains on features in steps."""
    config = session.config
    size = config.optimization.global_batch_size
    make_validation = None
    if validation is not None:
        make_validation = functools.partial(
            feature_cache.make_eval_dataset, validation, global_batch_size=size
        )
    return StageData(
        len(train.labels),
        functools.partial(
            feature_cache.make_train_dataset,
            train,
            global_batch_size=size,
            seed=config.runtime.seed,
            class_weights=class_weights(session, train.labels),
        ),
        make_validation,
    )
