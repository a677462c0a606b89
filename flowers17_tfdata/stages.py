"""The training stages of a run: their data, their models, their files."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import config as config_lib
from flowers17_tfdata.config import Config, InputConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.input import (
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
    freeze,
    resizing,
)
from flowers17_tfdata.results import metrics, model_views, terminal, timings
from flowers17_tfdata.session import (
    TRAINING_SPLITS,
    Session,
    versions,
    write_config,
)
from flowers17_tfdata.training import (
    checkpoints,
    inference,
    preemption,
)
from flowers17_tfdata.training.loop import Stage, StageData, Trainable
from flowers17_tfdata.training.preemption import StopRequest

# Images that batch-norm is measured on: once, and after each epoch of its
# training.
_CALIBRATION_IMAGES = 512
_EPOCH_CALIBRATION_IMAGES = 256

# With fewer in a batch, networks that normalize by it become worse (Y. Wu and
# K. He, "Group normalization", ECCV 2018, figure 1).
_LEAST_NORMALIZED_IMAGES = 16

# Python's share of a step is milliseconds: nothing beside a CPU's seconds,
# too much beside a GPU's step, most of the head's.
_GPU_STEPS_PER_CALL = 10
_HEAD_STEPS_PER_CALL = 100


def _stage_folder(session: Session, stage: str) -> pathlib.Path:
    return session.workdir / "checkpoints" / stage


@dataclasses.dataclass(frozen=True)
class _Splits:
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


def _load_examples(
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


def _share_out(
    session: Session, stage: str, examples: dict[str, Examples]
) -> _Splits:
    """Says which of the splits a stage trains on, and which it validates on."""
    trained = _trained_splits(stage)
    files = None
    if session.config.input.data_service:
        files = _write_files(session, trained, examples)
    return _Splits(
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


def _image_data(
    session: Session,
    splits: _Splits,
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


def _num_calibration(config: Config, stage: str) -> int:
    """Returns how many images a stage measures batch-norm on; 0: it doesn't.

    It must where there are no statistics to keep, or where they change.
    """
    if stage == "transfer":
        return _CALIBRATION_IMAGES if config.model.weights == "none" else 0
    return _EPOCH_CALIBRATION_IMAGES if config.model.trains_batch_norm else 0


def _feature_data(
    session: Session,
    splits: _Splits,
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
    splits: _Splits,
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
        batches = session.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.make_eval_dataset(
                examples,
                options,
                preprocess,
                global_batch_size=size,
                compute_dtype=session.compute_dtype,
                augmented_view=view,
                seed=config.runtime.seed,
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


def train_stages(session: Session, stages: Sequence[str]) -> None:
    """Runs each stage to its saved model, or finds it done.

    Refuses changed flags before anything is read, trained or written.
    """
    keys = {stage: _checked_resume_key(session, stage) for stage in stages}
    runtime, workers = session.config.runtime, session.workers
    waits = workers.count > 1 or bool(session.config.input.data_service)
    with preemption.stop_on_signals(
        runtime.grace_secs,
        runtime.stall_timeout_secs if waits else 0.0,
        workers.any,
    ) as stop:
        _run_stages(session, keys, stop)


def _run_stages(
    session: Session, keys: dict[str, dict[str, Any]], stop: StopRequest
) -> None:
    examples = None
    for stage, key in keys.items():
        done = (_stage_folder(session, stage) / "done.json").exists()
        done = done and session.model_path(stage).exists()
        # The chief wrote them before a barrier; a restart finds them all.
        if session.workers.all(done):
            terminal.say(f"{stage}: already done in {session.workdir}")
            continue
        stop.check(f"stopped before {stage}")
        if examples is None:
            write_config(session)
            with timings.measure(session.output, "decoding"):
                examples = _load_examples(session, keys)
        splits = _share_out(session, stage, examples)
        _run_stage(session, stage, splits, key, stop)


def _checked_resume_key(session: Session, stage: str) -> dict[str, Any]:
    config = session.config
    key = checkpoints.resume_key(
        config, stage, session.source.name, session.precision
    )
    for earlier in config_lib.STAGES[: config_lib.STAGES.index(stage) + 1]:
        # A fine-tuned model stands on the transfer stage of the same flags,
        # and a refitted one does as it did.
        if earlier == stage or not config.model.init_from:
            checkpoints.check_resume_key(
                _stage_folder(session, earlier), key, session.workdir
            )
    return key


def _run_stage(
    session: Session,
    stage: str,
    splits: _Splits,
    key: dict[str, Any],
    stop: StopRequest,
) -> None:
    config = session.config
    folder = session.output / "checkpoints" / stage
    start = time.perf_counter()
    with timings.measure(session.output, f"{stage}: building the network"):
        model = _build_stage_model(session, stage, splits)
    model_views.show(model, stage, session.output, config.model)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_resume_key(folder, key)
    runner = _make_stage(session, stage, splits, model, stop)
    with timings.measure(session.output, f"{stage}: epochs"):
        result = runner.run()
    if runner.model is not model:
        # It is the head, trained on standardized features.
        classifier.absorb_standardization(runner.model)
    trains_batch_norm = stage != "transfer" and config.model.trains_batch_norm
    if trains_batch_norm and config.model.fold_batch_norm:
        with session.strategy.scope():
            model = folding.fold_batch_norm(model)
    _save_model(session, stage, model, splits.trained)
    metrics.write_json(folder / "done.json", dataclasses.asdict(result))
    if result.validation_accuracy is None:
        outcome = (
            f"{result.best_epoch} epochs on {' and '.join(splits.trained)}"
        )
    else:
        outcome = (
            f"best epoch {result.best_epoch}, validation accuracy "
            f"{result.validation_accuracy:.4f}"
        )
    terminal.say(
        f"{stage}: {outcome}; {result.seconds:.0f} s in epochs, "
        f"{time.perf_counter() - start:.0f} s in this process; saved "
        f"{session.model_path(stage)}"
    )
    # The next stage reads what the chief wrote.
    session.workers.barrier()


def _save_model(
    session: Session, stage: str, model: keras.Model, splits: tuple[str, ...]
) -> None:
    source = session.source
    classifier.save_classifier(
        model,
        session.output / session.model_path(stage).name,
        {
            "class_names": list(source.class_names),
            "dataset": source.name,
            "trained_splits": list(splits),
            "trained_on": [
                fingerprint
                for split in splits
                for fingerprint in source.fingerprints(split)
            ],
        },
    )


def _make_stage(
    session: Session,
    stage: str,
    splits: _Splits,
    model: keras.Model,
    stop: StopRequest,
    schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
) -> Stage:
    """Chooses what a stage trains, and on what; see `Stage`."""
    config = session.config
    data = _image_data(
        session,
        splits,
        config.input,
        num_calibration=_num_calibration(config, stage),
    )
    if stage == "transfer" and config.input.feature_views > 0:
        data, features = _feature_data(session, splits, data, model, stop)
        with session.strategy.scope():
            head = classifier.get_standardizing_head(model, features)
        trained = Trainable(
            head, steps_per_call=_HEAD_STEPS_PER_CALL, xla_update=True
        )
    else:
        trained = _on_images(config, stage, model)
    return Stage(
        stage,
        config,
        session.workdir,
        trained,
        session.strategy,
        data,
        stop=stop,
        output=session.output,
        workers=session.workers,
        schedule=schedule,
    )


def _on_images(config: Config, stage: str, model: keras.Model) -> Trainable:
    rate_scales = None
    if stage != "transfer":
        lowest = config.optimization.finetune_lowest_rate
        rate_scales = freeze.learning_rate_scales(model, lowest)
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    return Trainable(
        model,
        resizing.training_model(model, config.input),
        rate_scales,
        steps_per_call=_GPU_STEPS_PER_CALL if has_gpu else 1,
    )


def open_stage(
    session: Session,
    stage: str,
    schedule: keras.optimizers.schedules.LearningRateSchedule,
) -> Stage:
    """Makes a stage as its phase does, for `Stage.try_steps`.

    Nothing of its training is read or written: it starts anew. Of the
    workdir's files the features are used, or computed and kept for the stage.

    Args:
      session: of the process.
      stage: `transfer` or `finetune`.
      schedule: learning rate by step, instead of the stage's own.

    Raises:
      UserError: what the stage starts from isn't there.
    """
    if stage != "transfer":
        # Before the images: it may be missing.
        _initial_model_path(session)
    splits = _share_out(session, stage, _load_examples(session, [stage]))
    model = _build_stage_model(session, stage, splits)
    stop = StopRequest()
    return _make_stage(session, stage, splits, model, stop, schedule)


def _build_stage_model(
    session: Session, stage: str, splits: _Splits
) -> keras.Model:
    if stage == "transfer":
        return _build_transfer_model(session, splits)
    return _load_initial_model(session)


def _build_transfer_model(session: Session, splits: _Splits) -> keras.Model:
    config = session.config
    images = _image_data(
        session, splits, config.input, num_calibration=_CALIBRATION_IMAGES
    )

    def measure(backbone: keras.Model) -> None:
        with timings.measure(session.output, "transfer: batch-norm"):
            batch_norm.calibrate(backbone, images.calibration_batches())

    # Random weights' are measured later: by the stage, or for its features.
    measures = config.model.batch_norm_statistics == "train"
    measures = measures and not _num_calibration(config, "transfer")
    with session.strategy.scope():
        model = classifier.build_classifier(
            config.model,
            image_size=config.input.image_size,
            num_classes=len(session.source.class_names),
            seed=config.runtime.seed,
            measure_batch_norm=measure if measures else None,
        )
        model = resizing.for_training(model, config.input)
        freeze.freeze_all(classifier.get_backbone(model))
    return model


def _initial_model_path(session: Session) -> str | pathlib.Path:
    """Returns what fine-tuning starts from.

    Raises:
      UserError: the transfer stage hasn't left it.
    """
    config = session.config
    path = config.model.init_from or session.model_path("transfer")
    if not pathlib.Path(path).exists() and not config.model.init_from:
        raise UserError(
            f"--phase={config.phase} needs {path}: run --phase=transfer in "
            "this --workdir first, or pass --init_from"
        )
    return path


def _load_initial_model(session: Session) -> keras.Model:
    config, path = session.config, _initial_model_path(session)
    num_classes = len(session.source.class_names)
    with session.strategy.scope():
        model = classifier.load_classifier(path, "--init_from")
        classifier.check_classifier(
            model, path, config.input.image_size, num_classes
        )
        classifier.check_backbone(model, path, config.model.backbone)
        _check_policy(model, path, session.precision)
        keeps = not config.model.trains_batch_norm
        folds = config.model.fold_batch_norm and folding.is_functional(model)
        if keeps and folds:
            model = folding.fold_batch_norm(model)
        model = resizing.for_training(model, config.input)
        backbone = classifier.get_backbone(model)
        unfreeze = config.model.unfreeze_from
        if unfreeze == "auto" and config.model.weights == "none":
            # Nothing in a random network is worth freezing.
            unfreeze = "all"
        freeze.unfreeze_from(backbone, unfreeze, keep_batch_norm=keeps)
    if config.model.train_batch_norm:
        freeze.check_trains_batch_norm(backbone, path)
        _warn_of_small_batches(session)
    return model


def _warn_of_small_batches(session: Session) -> None:
    replicas = session.strategy.num_replicas_in_sync
    size = session.config.optimization.global_batch_size // replicas
    if size < _LEAST_NORMALIZED_IMAGES:
        terminal.say(
            f"warning: --train_batch_norm normalizes each replica's {size} "
            f"images by themselves, and {_LEAST_NORMALIZED_IMAGES} or more "
            "serve it better: raise --global_batch_size, or pass "
            "--notrain_batch_norm"
        )


def _check_policy(model: keras.Model, path: object, policy: str) -> None:
    own = classifier.get_backbone(model).layers[-1].dtype_policy.name
    if own != policy:
        raise ConfigError(
            f"--precision must be {own}, which {path} was trained in; got "
            f"{policy}"
        )
