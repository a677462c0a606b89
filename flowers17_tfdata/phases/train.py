"""The training stages of a run: their models, and their files."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from flowers17_tfdata import files, terminal, timings
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import SOLVER, Config
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.models import (
    classifier,
    folding,
    freezing,
    saved_models,
    summary,
    training_size,
)
from flowers17_tfdata.phases import train_data, train_models
from flowers17_tfdata.phases.train_models import StageModel
from flowers17_tfdata.session import Session, write_config
from flowers17_tfdata.training import (
    checkpoints,
    linear_head,
    metrics,
    preemption,
)
from flowers17_tfdata.training.loop import (
    Stage,
    StageData,
    StageResult,
    Trainable,
)
from flowers17_tfdata.training.preemption import StopRequest

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
        else:
            stop.check(f"stopped before {stage}")
            if examples is None:
                write_config(session)
                with timings.measure(session.output, "decoding"):
                    examples = train_data.load_examples(session)
            splits = train_data.share_out(session, stage, examples)
            _run_stage(session, stage, splits, key, stop)
        if stage == "finetune":
            _tell_kept(session)


def _tell_kept(session: Session) -> None:
    """Says which of head and fine-tuned model goes on, and why."""
    before, after = (
        saved_models.validation_of(session.model_path(stage))
        for stage in ("transfer", "finetune")
    )
    if not before or not after:
        # Fine-tuning started from another run's model.
        return
    accuracies = f"{before.accuracy:.1%} -> {after.accuracy:.1%}"
    if saved_models.kept_stage(session.workdir) == "finetune":
        terminal.say(f"fine-tuning helped on validation: {accuracies}")
    else:
        terminal.say(
            f"fine-tuning did not help on validation ({accuracies}): kept the "
            f"head, {session.model_path('transfer')}"
        )


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
    splits: train_data.Splits,
    key: dict[str, Any],
    stop: StopRequest,
) -> None:
    config = session.config
    folder = session.output / "checkpoints" / stage
    start = time.perf_counter()
    method = _method(session, stage)
    with timings.measure(session.output, f"{stage}: building the network"):
        start_model = train_models.build_stage_model(session, method)
    model = start_model.model
    summary.show(model, stage, session.output, config.model)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_resume_key(folder, key)
    if (
        method == "transfer"
        and config.optimization.transfer_optimizer == SOLVER
    ):
        result = _solve_head(session, stage, splits, model, stop)
    else:
        result = _train(session, stage, method, splits, start_model, stop)
    if stage != "transfer" and folding.is_functional(model):
        # A later stage takes up the transfer stage's as it is.
        with session.strategy.scope():
            model = folding.fold_batch_norm(model)
    _save_model(session, stage, model, splits, result)
    files.write_json(folder / "done.json", dataclasses.asdict(result))
    if result.validation_accuracy is None:
        outcome = f"trained on {' and '.join(splits.trained)}"
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


def _method(session: Session, stage: str) -> str:
    """Returns how a stage trains: as `transfer` or as `finetune` does.

    Refit does as the better of the two did.
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


def _train(
    session: Session,
    stage: str,
    method: str,
    splits: train_data.Splits,
    start_model: StageModel,
    stop: StopRequest,
) -> StageResult:
    """Trains a stage's model epoch by epoch."""
    runner = _make_stage(session, stage, method, splits, start_model, stop)
    with timings.measure(session.output, f"{stage}: epochs"):
        result = runner.run()
    if runner.model is not start_model.model:
        # It is the head, trained on standardized features.
        classifier.absorb_standardization(runner.model)
    return result


def _solve_head(
    session: Session,
    stage: str,
    splits: train_data.Splits,
    model: keras.Model,
    stop: StopRequest,
) -> StageResult:
    """Gives the model the optimal linear head for what is trained on.

    Writes the stage's line of `metrics.jsonl`. The features are what takes
    time, and they are kept: a run that was stopped solves the head anew.
    """
    images = _image_data(session, "transfer", splits)
    train, validation = train_data.extract_features(
        session, splits, images, model, stop
    )
    start = time.perf_counter()
    class_weights = train_data.class_weights(session, train.labels)
    with timings.measure(session.output, f"{stage}: solving the head"):
        head = linear_head.fit(
            train,
            len(session.source.class_names),
            seed=session.config.runtime.seed,
            example_weights=(
                None if class_weights is None else class_weights[train.labels]
            ),
            stop=stop,
        )
    with session.strategy.scope():
        classifier.set_linear_head(model, head.kernel, head.bias)
    seconds = time.perf_counter() - start
    train_loss, train_accuracy = head.evaluate(train)
    loss, accuracy = (
        (None, None) if validation is None else head.evaluate(validation)
    )
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
            # It needs none.
            "learning_rate": 0.0,
            "images_per_sec": train.values[..., 0].size / seconds,
            "data_wait_fraction": 0.0,
            "seconds": seconds,
        }
    )
    writer.close()
    terminal.say(
        f"{stage}: the head's optimum in {head.iterations} iterations, weight "
        f"decay {head.weight_decay:g} by cross-validation, {seconds:.1f} s"
    )
    return StageResult(1, accuracy, loss, seconds)


def _save_model(
    session: Session,
    stage: str,
    model: keras.Model,
    splits: train_data.Splits,
    result: StageResult,
) -> None:
    source = session.source
    extras = {
        "class_names": list(source.class_names),
        "dataset": source.name,
        "trained_splits": list(splits.trained),
        "trained_on": [
            fingerprint
            for split in splits.trained
            for fingerprint in source.fingerprints(split)
        ],
    }
    if result.validation_accuracy is not None:
        extras["validation"] = {
            "accuracy": result.validation_accuracy,
            "loss": result.validation_loss,
        }
    classifier.save_classifier(
        model, session.output / session.model_path(stage).name, extras
    )


def _image_data(
    session: Session, method: str, splits: train_data.Splits
) -> StageData:
    options = session.config.input
    if method == "transfer":
        # The frozen backbone sees images as it will be asked about them.
        options = dataclasses.replace(options, train_scale=1.0)
    return train_data.image_data(
        session,
        splits,
        options,
        num_calibration=train_data.num_calibration_images(
            session.config, method
        ),
    )


def _make_stage(
    session: Session,
    stage: str,
    method: str,
    splits: train_data.Splits,
    start_model: StageModel,
    stop: StopRequest,
    schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
) -> Stage:
    """Chooses what a stage trains, and on what; see `Stage`."""
    config, model = session.config, start_model.model
    data = _image_data(session, method, splits)
    if method == "transfer" and config.input.feature_views > 0:
        train, validation = train_data.extract_features(
            session, splits, data, model, stop
        )
        data = train_data.head_data(session, train, validation)
        with session.strategy.scope():
            head = classifier.get_standardizing_head(model, train.values)
        trained = Trainable(
            head,
            options_of=method,
            steps_per_call=_HEAD_STEPS_PER_CALL,
            xla_update=True,
        )
    else:
        trained = _on_images(config, method, start_model)
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


def _on_images(
    config: Config, method: str, start_model: StageModel
) -> Trainable:
    model, scales = start_model
    reduced = rate_scales = None
    if method == "finetune":
        reduced = training_size.training_model(model, config.input)
        rate_scales = freezing.learning_rate_scales(
            model,
            config.optimization.finetune_lowest_rate,
            scales,
            config.optimization.finetune_optimizer,
        )
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    return Trainable(
        model,
        reduced,
        method,
        rate_scales,
        steps_per_call=_GPU_STEPS_PER_CALL if has_gpu else 1,
    )


def open_stage(
    session: Session,
    stage: str,
    schedule: keras.optimizers.schedules.LearningRateSchedule,
    examples: dict[str, Examples] | None = None,
) -> Stage:
    """Makes a stage as its phase does, to try its steps.

    It starts from the beginning and neither reads nor writes checkpoints. Of
    the workdir's files it uses the features, or computes and keeps them.

    Args:
      session: of the process.
      stage: `transfer` or `finetune`.
      schedule: learning rate by step, instead of the stage's own.
      examples: the training splits by name; None: they are loaded here.

    Raises:
      UserError: what the stage starts from isn't there.
    """
    if stage != "transfer":
        # Before the images: it may be missing.
        train_models.initial_model_path(session)
    splits = train_data.share_out(
        session, stage, examples or train_data.load_examples(session)
    )
    start_model = train_models.build_stage_model(session, stage)
    return _make_stage(
        session, stage, stage, splits, start_model, StopRequest(), schedule
    )
