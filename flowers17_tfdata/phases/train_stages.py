"""Runs the training stages of a run, each to its saved model."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from flowers17_tfdata import terminal, timings
from flowers17_tfdata.config.optimization import SOLVER, STAGES
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import (
    classifier,
    folding,
    freezing,
    saved_models,
    summary,
    training_size,
)
from flowers17_tfdata.models.trust import Trust
from flowers17_tfdata.phases import (
    train_data,
    train_features,
    train_models,
    train_trust,
)
from flowers17_tfdata.phases.train_models import StageModel
from flowers17_tfdata.phases.train_trust import TrainedStage
from flowers17_tfdata.session import Session, write_config
from flowers17_tfdata.training import (
    linear_head,
    metrics,
    preemption,
    resume,
)
from flowers17_tfdata.training.linear_head import LinearHead
from flowers17_tfdata.training.loop import Stage
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.resume import Course
from flowers17_tfdata.training.stage import StageResult, Trainable

# Returning to Python costs milliseconds per step: nothing beside the seconds of
# a CPU's step, too much beside a GPU's, and most of the time of a head's.
_GPU_STEPS_PER_CALL = 10
_HEAD_STEPS_PER_CALL = 100

# The features of the frozen backbone to train on, and to validate on, if any.
_CachedFeatures = tuple[Features, Features | None]


def _stage_folder(session: Session, stage: str) -> pathlib.Path:
    return session.workdir / "checkpoints" / stage


def train_stages(session: Session, stages: Sequence[str]) -> None:
    """Runs each stage to its saved model, or finds that it is done.

    Args:
      session: the open run.
      stages: some of `STAGES`, in their order.

    Raises:
      UserError: flags differ from those that the run started with (checked
        before anything is read, trained or written), or training failed.
    """
    keys = {s: _checked_resume_key(session, s, stages) for s in stages}
    runtime, workers = session.config.runtime, session.workers
    with preemption.stop_on_signals(
        runtime.grace_secs,
        runtime.stall_timeout_secs if workers.count > 1 else 0.0,
        workers.any,
    ) as stop:
        _run_stages(session, keys, stop)


def _run_stages(
    session: Session, keys: dict[str, dict[str, Any]], stop: StopRequest
) -> None:
    examples = None
    for stage, key in keys.items():
        course = _course(session, stage)
        ended = resume.ended_course(_stage_folder(session, stage))
        done = ended is not None and ended in (course, Course(""))
        done = done and session.model_path(stage).exists()
        # The chief wrote them before a barrier, so all workers find them.
        if session.workers.all(done):
            _report_done(session, stage, course)
        else:
            stop.check(f"before {stage}")
            if ended and ended.method and not ended.begins(course):
                _start_again(session, stage)
            if examples is None:
                write_config(session, {"schedules": _schedules(session)})
                with timings.measure(session.output, "decoding"):
                    examples = train_data.load_examples(session)
            splits = train_data.select_splits(session, stage, examples)
            _run_stage(session, stage, course, splits, key, stop)
        outcome = saved_models.fine_tuning_outcome(session.workdir)
        if stage == "finetune" and outcome:
            terminal.say(outcome)
    if "refit" not in keys:
        _report_outdated_refit(session)


def _course(session: Session, stage: str) -> Course:
    """Returns how a stage must have been trained to be done.

    A stage that ended after fewer epochs goes on with a new schedule. Refit
    repeats the course of the better stage.
    """
    method, options = _method(session, stage), session.config.optimization
    if method == "transfer" and options.transfer_optimizer == SOLVER:
        return Course(method)
    ended = resume.ended_course(_stage_folder(session, method))
    course = Course(method, ended.ends if ended else ())
    return course.to(options.stage(method).epochs)


def _schedules(session: Session) -> dict[str, tuple[int, ...]]:
    """Returns the epochs after which each stage's schedules end."""
    courses = (_course(session, s) for s in STAGES if s != "refit")
    return {
        course.method: course.ends for course in courses if any(course.ends)
    }


def _report_outdated_refit(session: Session) -> None:
    """Says that later phases use a refit of what has been trained since."""
    path = session.model_path("refit")
    ended = resume.ended_course(_stage_folder(session, "refit"))
    if not path.exists() or not ended or not ended.method:
        return
    if ended != _course(session, "refit"):
        terminal.say(
            f"{path} repeats the training as it was before, and later phases "
            "use it: renew it by --phase=refit with the same flags"
        )


def _report_done(session: Session, stage: str, course: Course) -> None:
    terminal.say(f"{stage}: already done in {session.workdir}")
    if stage == "transfer" and not course.ends:
        before = resume.started_stage_with(_stage_folder(session, stage))
        epochs = session.config.optimization.transfer_epochs
        if before.get("transfer_epochs", epochs) != epochs:
            terminal.say(
                f"--transfer_epochs={epochs} changes nothing: {SOLVER} solves "
                "for the head, without epochs"
            )


def _start_again(session: Session, stage: str) -> None:
    """Removes what refit has saved: the better stage is another one now."""
    terminal.say(f"{stage}: repeated, because what it repeats has changed")
    if session.workers.is_chief:
        shutil.rmtree(_stage_folder(session, stage))
    session.workers.barrier()


def _checked_resume_key(
    session: Session, stage: str, stages: Sequence[str]
) -> dict[str, Any]:
    config = session.config
    key = resume.resume_key(
        config, stage, session.source.name, session.precision
    )
    for earlier in STAGES[: STAGES.index(stage) + 1]:
        # Fine-tuning starts from the transfer stage, and refit repeats one of
        # the two: their flags must be the same.
        if earlier == stage or not config.model.init_from:
            resume.check_key(
                _stage_folder(session, earlier),
                key,
                session.workdir,
                _may_grow(session, earlier) if earlier in stages else (),
            )
    return key


def _may_grow(session: Session, stage: str) -> tuple[str, ...]:
    """Returns the flags that may be higher than when the stage ended."""
    folder = _stage_folder(session, stage)
    ended = resume.ended_course(folder)
    if ended is None or not ended.method:
        return ()
    if stage == "refit":
        return "transfer_epochs", "finetune_epochs"
    started = resume.started_stage_with(folder).get(f"{stage}_epochs")
    if ended.ends[-1:] != (started,) or not resume.has_checkpoint(folder):
        # It was interrupted on the way to more epochs, or can't go on.
        return ()
    tuned = _stage_folder(session, "finetune")
    if stage == "transfer" and resume.started_stage_with(tuned):
        # It started from the head of fewer epochs.
        return ()
    return (f"{stage}_epochs",)


@dataclasses.dataclass(frozen=True)
class _StageRun:
    """One stage of an open run, ready to be trained.

    Attributes:
      session: the open run.
      stage: `transfer`, `finetune` or `refit`.
      course: how the stage trains.
      splits: the splits to train and validate on.
      start: the model that the stage starts from.
      stop: the request to save and stop.
    """

    session: Session
    stage: str
    course: Course
    splits: train_data.Splits
    start: StageModel
    stop: StopRequest

    @property
    def method(self) -> str:
        return self.course.method


def _run_stage(
    session: Session,
    stage: str,
    course: Course,
    splits: train_data.Splits,
    key: dict[str, Any],
    stop: StopRequest,
) -> None:
    folder = session.output / "checkpoints" / stage
    start_secs = time.perf_counter()
    method = course.method
    with timings.measure(session.output, f"{stage}: building the network"):
        start = train_models.build_stage_model(session, method)
    model = start.model
    summary.show(model, stage, session.output, session.config.model)
    folder.mkdir(parents=True, exist_ok=True)
    resume.write_key(folder, key)
    run = _StageRun(session, stage, course, splits, start, stop)
    features = _cached_features(run)
    head = None
    if course.ends:
        result = _train(run, features)
    else:
        assert features is not None
        result, head = _solve_head(run, features)
    if stage != "transfer":
        # The transfer stage's model keeps its batch-norm: fine-tuning may
        # train it.
        with session.strategy.scope():
            model = folding.fold_batch_norm(model)
    trained = TrainedStage(stage, method, model, splits, features, head, stop)
    trust = train_trust.calibrate(session, trained)
    _save_model(run, model, result, trust)
    resume.write_done(folder, result, course)
    if result.validation_accuracy is None:
        outcome = f"trained on {' and '.join(splits.trained)}"
    else:
        outcome = f"validation accuracy {result.validation_accuracy:.4f}"
        if course.ends:
            outcome = f"best epoch {result.best_epoch}, {outcome}"
    terminal.say(
        f"{stage}: {outcome}; {result.seconds:.0f} s in epochs, "
        f"{time.perf_counter() - start_secs:.0f} s in this process; saved "
        f"{session.model_path(stage)}"
    )
    # The next stage reads the files that the chief wrote.
    session.workers.barrier()


def _method(session: Session, stage: str) -> str:
    """Returns how a stage trains: `transfer` or `finetune`.

    Refit repeats the better of the two.
    """
    if stage != "refit":
        return stage
    kept = saved_models.kept_stage(session.workdir, before_refit=True)
    if kept is None:
        raise UserError(
            f"--phase=refit needs {session.model_path('transfer')}: run "
            "--phase=train or --phase=transfer in this --workdir first"
        )
    return kept


def _cached_features(run: _StageRun) -> _CachedFeatures | None:
    """Returns the features that the head is fitted to; None: on images."""
    session = run.session
    if run.method != "transfer" or not session.config.input.feature_views:
        return None
    images = train_data.image_data(session, run.splits, run.method)
    return train_features.extract_features(
        session, run.splits, images, run.start.model, run.stop
    )


def _train(run: _StageRun, features: _CachedFeatures | None) -> StageResult:
    """Trains a stage's model epoch by epoch."""
    stage = _make_stage(run, features)
    with timings.measure(run.session.output, f"{run.stage}: epochs"):
        result = stage.run()
    if stage.model is not run.start.model:
        # This is the head, which trains on standardized features.
        classifier.absorb_standardization(stage.model)
    return result


def _solve_head(
    run: _StageRun, features: _CachedFeatures
) -> tuple[StageResult, LinearHead]:
    """Gives the model the optimal linear head for the training features.

    It writes one line to `metrics.jsonl`, and no checkpoint: the features take
    most of the time, and they are cached.
    """
    session, stage, model = run.session, run.stage, run.start.model
    train, validation = features
    start_secs = time.perf_counter()
    with timings.measure(session.output, f"{stage}: solving the head"):
        head = linear_head.fit(
            train,
            len(session.source.class_names),
            seed=session.config.runtime.seed,
            example_weights=train_data.example_weights(session, train.labels),
            stop=run.stop,
        )
    with session.strategy.scope():
        predictions = model.get_layer("predictions")
        predictions.set_weights([head.kernel, head.bias])
    seconds = time.perf_counter() - start_secs
    train_loss, train_accuracy = head.evaluate(train)
    loss, accuracy = head.evaluate(validation) if validation else (None, None)
    writer = metrics.MetricsWriter(session.output, stage, 0)
    writer.write(
        {
            "phase": stage,
            "epoch": 1,
            "step": head.iterations,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            # The solver has no learning rate.
            "learning_rate": 0.0,
            "images_per_sec": train.values[..., 0].size / seconds,
            "data_wait_fraction": 0.0,
            "seconds": seconds,
        }
    )
    writer.close()
    terminal.say(
        f"{stage}: solved the head in {head.iterations} iterations, weight "
        f"decay {head.weight_decay:g} by cross-validation, {seconds:.1f} s"
    )
    return StageResult(1, accuracy, loss, seconds), head


def _save_model(
    run: _StageRun,
    model: keras.Model,
    result: StageResult,
    trust: Trust | None,
) -> None:
    session, source, trained = (
        run.session,
        run.session.source,
        run.splits.trained,
    )
    extras: dict[str, Any] = {
        "class_names": list(source.class_names),
        "dataset": source.name,
        "trained_splits": list(trained),
        "trained_on": [f for s in trained for f in source.fingerprints(s)],
    }
    if result.validation_accuracy is not None:
        extras["validation"] = {
            "accuracy": result.validation_accuracy,
            # That of the model as it is saved.
            "loss": trust.loss if trust else result.validation_loss,
        }
    saved_models.save_classifier(
        model,
        session.output / session.model_path(run.stage).name,
        extras,
        trust,
    )


def _make_stage(
    run: _StageRun,
    features: _CachedFeatures | None,
    schedule: LearningRateSchedule | None = None,
) -> Stage:
    """Chooses what a stage trains, and on which data."""
    session, config = run.session, run.session.config
    if features is not None:
        train, validation = features
        data = train_data.head_data(session, train, validation)
        with session.strategy.scope():
            head = classifier.get_standardizing_head(
                run.start.model, train.values
            )
        trained = Trainable(
            head,
            config.optimization.stage(run.method),
            steps_per_call=_HEAD_STEPS_PER_CALL,
            restarts=run.course.ends[:-1],
        )
    else:
        data = train_data.image_data(session, run.splits, run.method)
        trained = _on_images(run)
    return Stage(
        run.stage,
        config,
        session.workdir,
        trained,
        session.strategy,
        data,
        stop=run.stop,
        output=session.output,
        workers=session.workers,
        schedule=schedule,
    )


def _on_images(run: _StageRun) -> Trainable:
    config, method, start = run.session.config, run.method, run.start
    reduced = rate_scales = None
    if method == "finetune":
        reduced = training_size.training_model(start.model, config.input)
        rate_scales = freezing.learning_rate_scales(
            start.model,
            config.optimization.finetune_lowest_rate,
            start.channel_scales,
            config.optimization.finetune_optimizer,
        )
        if all(np.all(scale == 1) for scale in rate_scales):
            rate_scales = None
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    return Trainable(
        start.model,
        config.optimization.stage(method),
        reduced,
        rate_scales,
        steps_per_call=_GPU_STEPS_PER_CALL if has_gpu else 1,
        restarts=run.course.ends[:-1],
    )


def open_stage(
    session: Session,
    stage: str,
    schedule: LearningRateSchedule | None = None,
    examples: dict[str, Examples] | None = None,
) -> Stage:
    """Makes a stage the way its phase does, to try its steps.

    It reads and writes no checkpoint; it uses and fills the feature cache.

    Args:
      session: the open run.
      stage: `transfer` or `finetune`.
      schedule: the learning rate by step, instead of the configured one.
      examples: the training splits by name; None: they are loaded here.

    Raises:
      UserError: the model that fine-tuning starts from is missing.
    """
    if stage != "transfer":
        # Before the images are read: the file may be missing.
        train_models.initial_model_path(session)
    examples = examples or train_data.load_examples(session)
    splits = train_data.select_splits(session, stage, examples)
    start = train_models.build_stage_model(session, stage)
    run = _StageRun(session, stage, Course(stage), splits, start, StopRequest())
    return _make_stage(run, _cached_features(run), schedule)
