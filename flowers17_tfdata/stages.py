"""The training stages of a run: their models, and their files."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from flowers17_tfdata import config as config_lib
from flowers17_tfdata import stage_data
from flowers17_tfdata.config import Config
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.models import (
    batch_norm,
    classifier,
    folding,
    freeze,
    resizing,
)
from flowers17_tfdata.results import metrics, model_views, terminal, timings
from flowers17_tfdata.session import Session, write_config
from flowers17_tfdata.training import checkpoints, preemption
from flowers17_tfdata.training.loop import Stage, Trainable
from flowers17_tfdata.training.preemption import StopRequest

# With fewer in a batch, networks that normalize by it become worse (Y. Wu and
# K. He, "Group normalization", ECCV 2018, figure 1).
_LEAST_NORMALIZED_IMAGES = 16

# Python's share of a step is milliseconds: nothing beside a CPU's seconds,
# too much beside a GPU's step, most of the head's.
_GPU_STEPS_PER_CALL = 10
_HEAD_STEPS_PER_CALL = 100


def _stage_folder(session: Session, stage: str) -> pathlib.Path:
    return session.workdir / "checkpoints" / stage


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
                examples = stage_data.load_examples(session, keys)
        splits = stage_data.share_out(session, stage, examples)
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
    splits: stage_data.Splits,
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
        if config.optimization.refit_runs > 1:
            outcome += f", the mean of {config.optimization.refit_runs} runs"
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
    splits: stage_data.Splits,
    model: keras.Model,
    stop: StopRequest,
    schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
) -> Stage:
    """Chooses what a stage trains, and on what; see `Stage`."""
    config = session.config
    data = stage_data.image_data(
        session,
        splits,
        config.input,
        num_calibration=stage_data.num_calibration_images(config, stage),
    )
    if stage == "transfer" and config.input.feature_views > 0:
        data, features = stage_data.feature_data(
            session, splits, data, model, stop
        )
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
    examples = stage_data.load_examples(session, [stage])
    splits = stage_data.share_out(session, stage, examples)
    model = _build_stage_model(session, stage, splits)
    stop = StopRequest()
    return _make_stage(session, stage, splits, model, stop, schedule)


def _build_stage_model(
    session: Session, stage: str, splits: stage_data.Splits
) -> keras.Model:
    if stage == "transfer":
        return _build_transfer_model(session, splits)
    return _load_initial_model(session)


def _build_transfer_model(
    session: Session, splits: stage_data.Splits
) -> keras.Model:
    config = session.config
    images = stage_data.image_data(
        session,
        splits,
        config.input,
        num_calibration=stage_data.CALIBRATION_IMAGES,
    )

    def measure(backbone: keras.Model) -> None:
        with timings.measure(session.output, "transfer: batch-norm"):
            batch_norm.calibrate(backbone, images.calibration_batches())

    # Random weights' are measured later: by the stage, or for its features.
    measures = config.model.batch_norm_statistics == "train"
    measures = measures and not stage_data.num_calibration_images(
        config, "transfer"
    )
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
        backbone = classifier.get_backbone(model)
        unfreeze = config.model.unfreeze_from
        if unfreeze == "auto" and config.model.weights == "none":
            # Nothing in a random network is worth freezing.
            unfreeze = "all"
        freeze.unfreeze_from(
            backbone,
            unfreeze,
            keep_batch_norm=not config.model.trains_batch_norm,
        )
        if config.model.train_batch_norm:
            freeze.check_trains_batch_norm(backbone, path)
            _warn_of_small_batches(session)
        if config.model.fold_batch_norm and folding.is_functional(model):
            model = folding.fold_batch_norm(model, frozen_only=True)
        return resizing.for_training(model, config.input)


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
