"""What a stage trains and validates on: images, or the backbone's features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from flowers17_tfdata import machine, terminal, timings
from flowers17_tfdata.config.config import Config, InputConfig
from flowers17_tfdata.input import (
    augmentation,
    data_service,
    feature_cache,
    input_pipeline,
)
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import backbones, batch_norm, classifier, folding
from flowers17_tfdata.session import TRAINING_SPLITS, Session
from flowers17_tfdata.training import inference
from flowers17_tfdata.training.loop import StageData
from flowers17_tfdata.training.preemption import StopRequest

# Images that batch-norm is measured on: once, and after each epoch of its
# training.
_CALIBRATION_IMAGES = 512
_EPOCH_CALIBRATION_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a stage trains on, and what it validates on, if on anything.

    Attributes:
      trained: the splits to train on, by name.
      train: examples of all of them.
      validation: None: it is trained on.
      train_files: of `train`, for `--data_service`.
    """

    trained: Mapping[str, Examples]
    train: Examples
    validation: Examples | None
    train_files: data_service.ImageFiles | None = None


def _trained_splits(stage: str) -> tuple[str, ...]:
    """Returns the names of the splits that a stage trains on."""
    return TRAINING_SPLITS if stage == "refit" else ("train",)


def load_examples(session: Session) -> dict[str, Examples]:
    """Decodes the splits that a run trains and validates on, once for all."""
    return {
        split: examples_lib.load_examples(
            session.source, split, session.config.input
        )
        for split in TRAINING_SPLITS
    }


def share_out(
    session: Session, stage: str, examples: dict[str, Examples]
) -> Splits:
    """Says which of the splits a stage trains on, and which it validates on."""
    trained = _trained_splits(stage)
    files = None
    if session.config.input.data_service:
        files = _write_files(session, trained, examples)
    return Splits(
        {split: examples[split] for split in trained},
        examples_lib.join_examples([examples[split] for split in trained]),
        None if "validation" in trained else examples["validation"],
        files,
    )


def _write_files(
    session: Session, splits: Iterable[str], examples: dict[str, Examples]
) -> data_service.ImageFiles:
    """Writes the images of splits, one after another, for data workers."""
    data_service.check_reachable(session.config.input.data_service)
    paths, labels = [], []
    for split in splits:
        name = f"images/{session.source.name}/{split}"
        if session.workers.is_chief:
            data_service.write_images(
                session.source, split, session.output / name
            )
        session.workers.barrier()
        files = data_service.find_images(
            session.workdir / name, examples[split].labels
        )
        paths += files.paths
        labels.append(files.labels)
    return data_service.ImageFiles(paths, np.concatenate(labels))


def class_weights(session: Session, labels: np.ndarray) -> np.ndarray | None:
    """Returns the weight of each class by `--class_weights`; None: all 1."""
    if session.config.optimization.class_weights == "none":
        return None
    return input_pipeline.balanced_class_weights(
        labels, len(session.source.class_names)
    )


def image_data(
    session: Session,
    splits: Splits,
    options: InputConfig,
    *,
    num_calibration: int,
) -> StageData:
    """Images, augmented anew in every epoch.

    Args:
      session: of the process.
      splits: what to train and validate on.
      options: size and augmentation of the images.
      num_calibration: of them, how many batch-norm is measured on; 0: it is
        not measured.
    """
    config = session.config
    preprocess = backbones.get_preprocess(config.model.backbone)
    weights = class_weights(session, splits.train.labels)
    arguments = {
        "global_batch_size": config.optimization.global_batch_size,
        "compute_dtype": session.compute_dtype,
    }

    def make_train(initial_epoch, initial_step, context):
        make, images = input_pipeline.make_train_dataset, splits.train
        if options.data_service:
            make, images = data_service.make_train_dataset, splits.train_files
        return make(
            images,
            options,
            preprocess,
            seed=config.runtime.seed,
            initial_epoch=initial_epoch,
            initial_step=initial_step,
            input_context=context,
            class_weights=weights,
            **arguments,
        )

    def make_validation(context):
        return input_pipeline.make_eval_dataset(
            splits.validation,
            options,
            preprocess,
            input_context=context,
            **arguments,
        )

    def make_calibration():
        batches = input_pipeline.make_eval_dataset(
            splits.train, options, preprocess, **arguments
        )
        size = config.optimization.global_batch_size
        return batches.take(max(1, num_calibration // size))

    return StageData(
        num_examples=splits.train.num_examples,
        make_train=make_train,
        make_validation=make_validation
        if splits.validation is not None
        else None,
        make_calibration=make_calibration if num_calibration else None,
        device_stage=input_pipeline.make_device_stage(
            options, preprocess, session.compute_dtype
        ),
    )


def num_calibration_images(config: Config, stage: str) -> int:
    """Returns how many images a stage measures batch-norm on; 0: it doesn't.

    It must where there are no statistics to keep, or where they change.
    """
    if stage == "transfer":
        return _CALIBRATION_IMAGES if config.model.weights == "none" else 0
    return _EPOCH_CALIBRATION_IMAGES if config.model.trains_batch_norm else 0


def extract_features(
    session: Session,
    splits: Splits,
    images: StageData,
    model: keras.Model,
    stop: StopRequest,
) -> tuple[Features, Features | None]:
    """Features of the frozen backbone, from the workdir or computed now.

    Args:
      session: of the process.
      splits: what to fit a head to, and to validate it on.
      images: the same, as images.
      model: the classifier; its batch-norm is measured on `images` where the
        stage measures it.
      stop: whether to stop.

    Returns:
      The features of what is trained on, and those of validation (None where
      it is trained on).

    Raises:
      Preempted: it was asked to stop.
    """
    config = session.config
    if images.make_calibration:
        batch_norm.measure_statistics(model, images.calibration_batches())
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
        # With all views where a refit is to find them.
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
    """Features of a split, from the workdir or computed now."""
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
    arrays = feature_cache.load(path)
    # Computing them takes all workers.
    found = session.workers.all(arrays is not None)
    if not found:
        arrays = {
            "values": _extract_views(
                session, extractor, name, examples, num_views, stop
            )
        }
        feature_cache.save(session.output / file, arrays)
    terminal.say(
        f"features of {name}, {num_views} view(s), "
        + (f"from {path}" if found else f"saved to {path}")
        + f", {time.perf_counter() - start:.1f} s"
    )
    return Features(arrays["values"], examples.labels)


def head_data(
    session: Session, train: Features, validation: Features | None
) -> StageData:
    """What a head trains on, step by step: cached features."""
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
    """Returns what computes the features; frozen, so it can be folded."""
    extractor = classifier.get_feature_extractor(model)
    with session.strategy.scope():
        return folding.fold_batch_norm(extractor)


def _views_key(config: Config, num_views: int) -> dict[str, Any]:
    """Returns what the views of an image depend on, beside the image."""
    key: dict[str, Any] = {"count": num_views}
    if num_views > augmentation.num_fixed_views(config.input):
        key |= dataclasses.asdict(config.input) | {"train_scale": 1.0}
        key |= {"seed": config.runtime.seed}
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
    preprocess = backbones.get_preprocess(config.model.backbone)
    size = config.optimization.global_batch_size
    # Of the size that the head will meet.
    options = dataclasses.replace(config.input, train_scale=1.0)
    device_stage = input_pipeline.make_device_stage(
        options, preprocess, session.compute_dtype
    )

    def extract(view: int) -> np.ndarray:
        transforms = augmentation.view_transforms(
            options, config.runtime.seed, view, examples.num_examples
        )
        batches = session.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.make_eval_dataset(
                examples,
                options,
                preprocess,
                global_batch_size=size,
                compute_dtype=session.compute_dtype,
                transforms=transforms,
                input_context=context,
            )
        )
        return inference.run_model(
            extractor,
            session.strategy,
            batches,
            device_stage,
            title=f"features of {name}, view {view + 1}/{num_views}",
            num_steps=input_pipeline.steps_per_epoch(
                examples.num_examples, size
            ),
            stop=stop,
        )

    return np.stack([extract(view) for view in range(num_views)])
