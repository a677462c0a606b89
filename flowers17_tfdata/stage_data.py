"""What a stage trains and validates on: images, or the backbone's features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from flowers17_tfdata.config import Config, InputConfig
from flowers17_tfdata.input import (
    augmentation,
    data_service,
    feature_cache,
    input_pipeline,
)
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import (
    backbones,
    batch_norm,
    classifier,
    folding,
)
from flowers17_tfdata.results import terminal, timings
from flowers17_tfdata.session import TRAINING_SPLITS, Session, versions
from flowers17_tfdata.training import inference
from flowers17_tfdata.training.loop import StageData
from flowers17_tfdata.training.preemption import StopRequest

# Images that batch-norm is measured on: once, and after each epoch of its
# training.
CALIBRATION_IMAGES = 512
_EPOCH_CALIBRATION_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a stage trains on, and what it validates on, if on anything.

    Attributes:
      trained: names of the splits that `train` holds.
      train: examples of all of them.
      validation: None: it is trained on.
      train_files: of `train`, for `--data_service`.
    """

    trained: tuple[str, ...]
    train: Examples
    validation: Examples | None
    train_files: data_service.ImageFiles | None = None


def _trained_splits(stage: str) -> tuple[str, ...]:
    """Returns the names of the splits that a stage trains on."""
    return TRAINING_SPLITS if stage == "refit" else ("train",)


def load_examples(
    session: Session, stages: Iterable[str]
) -> dict[str, Examples]:
    """Decodes the splits that stages look at, once for all of them."""
    augmented = {name for stage in stages for name in _trained_splits(stage)}
    return {
        split: examples_lib.load_examples(
            session.source,
            split,
            session.config.input,
            augmented=split in augmented,
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
        trained,
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


def _class_weights(session: Session, train: Examples) -> np.ndarray | None:
    if session.config.optimization.class_weights == "none":
        return None
    return input_pipeline.balanced_class_weights(
        train.labels, len(session.source.class_names)
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
    weights = _class_weights(session, splits.train)
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
        return CALIBRATION_IMAGES if config.model.weights == "none" else 0
    return _EPOCH_CALIBRATION_IMAGES if config.model.trains_batch_norm else 0


def feature_data(
    session: Session,
    splits: Splits,
    images: StageData,
    model: keras.Model,
    stop: StopRequest,
) -> tuple[StageData, np.ndarray]:
    """Features of the frozen backbone, from the workdir or computed now.

    Returns:
      What to train the head on, and the train split's features,
      `[views, n, channels]`.
    """
    config = session.config
    if images.make_calibration:
        batch_norm.calibrate(model, images.calibration_batches())
    extractor = _get_extractor(session, model)
    key = feature_cache.cache_key(
        {
            "weights": inference.weights_digest(extractor),
            "fold_batch_norm": config.model.fold_batch_norm,
            "backbone": config.model.backbone,
            # They change what is computed, but not every time the weights.
            "backbone_end": config.model.backbone_end,
            "backbone_taps": config.model.backbone_taps,
            "train": splits.train.images.digest(),
            "validation": splits.validation.images.digest(),
            "image_size": config.input.image_size,
            "views": _views_key(config),
            "precision": session.precision,
            "versions": versions(),
        }
    )
    name = f"features/{key}.npz"
    path, start = session.workdir / name, time.perf_counter()
    with timings.measure(session.output, "transfer: features"):
        arrays = feature_cache.load(path)
        # Computing them takes all workers.
        found = session.workers.all(arrays is not None)
        if not found:
            arrays = _extract_views(session, splits, extractor, stop)
            feature_cache.save(session.output / name, arrays)
    terminal.say(
        f"transfer: features of {config.input.feature_views} view(s) "
        + (f"from {path}" if found else f"saved to {path}")
        + f", {time.perf_counter() - start:.1f} s"
    )
    train = Features(arrays["train"], splits.train.labels)
    validation = Features(arrays["validation"], splits.validation.labels)
    size = config.optimization.global_batch_size
    weights = _class_weights(session, splits.train)

    def make_train(initial_epoch, initial_step, context):
        return feature_cache.make_train_dataset(
            train,
            config.input,
            global_batch_size=size,
            seed=config.runtime.seed,
            initial_epoch=initial_epoch,
            initial_step=initial_step,
            input_context=context,
            class_weights=weights,
        )

    def make_validation(context):
        return feature_cache.make_eval_dataset(
            validation,
            config.input,
            global_batch_size=size,
            input_context=context,
        )

    data = StageData(splits.train.num_examples, make_train, make_validation)
    return data, arrays["train"]


def _get_extractor(session: Session, model: keras.Model) -> keras.Model:
    """Returns what computes the features; frozen, so it can be folded."""
    extractor = classifier.get_feature_extractor(model)
    config = session.config.model
    if not (config.fold_batch_norm and config.trains_batch_norm):
        return extractor
    with session.strategy.scope():
        return folding.fold_batch_norm(extractor)


def _views_key(config: Config) -> dict[str, Any]:
    """Returns what the views of an image depend on, beside the image."""
    if config.input.feature_views == 1:
        # The clean one.
        return {}
    drawn = dataclasses.asdict(config.input)
    drawn |= {"input_threads": 0, "train_scale": 1.0}
    return drawn | {"seed": config.runtime.seed}


def _extract_views(
    session: Session,
    splits: Splits,
    extractor: keras.Model,
    stop: StopRequest,
) -> dict[str, np.ndarray]:
    config = session.config
    preprocess = backbones.get_preprocess(config.model.backbone)
    size = config.optimization.global_batch_size

    # Of the size that the head will meet.
    options = dataclasses.replace(config.input, train_scale=1.0)
    device_stage = input_pipeline.make_device_stage(
        options, preprocess, session.compute_dtype
    )

    def extract(examples: Examples, view: int, title: str) -> np.ndarray:
        transforms = None
        if view:
            transforms = augmentation.draw_transforms(
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
            title=f"features of {title}",
            num_steps=input_pipeline.steps_per_epoch(
                examples.num_examples, size
            ),
            stop=stop,
        )

    views = config.input.feature_views
    return {
        "train": np.stack(
            [
                extract(splits.train, view, f"train, view {view + 1}/{views}")
                for view in range(views)
            ]
        ),
        "validation": extract(splits.validation, 0, "validation")[np.newaxis],
    }
