"""What each `--phase` does."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

import flowers17_tfdata
from flowers17_tfdata import config as config_lib
from flowers17_tfdata.config import Config
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import sources
from flowers17_tfdata.errors import (
    AccuracyGateMissed,
    ConfigError,
    UserError,
    one_line,
)
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.models import backbones, classifier, freeze
from flowers17_tfdata.results import evaluate as evaluate_lib
from flowers17_tfdata.results import metrics, terminal
from flowers17_tfdata.training import checkpoints, precision
from flowers17_tfdata.training import strategy as strategy_lib
from flowers17_tfdata.training.loop import Stage, StageData
from flowers17_tfdata.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Session:
    """What the phases of one process share."""

    config: Config
    workdir: pathlib.Path
    strategy: tf.distribute.Strategy
    precision: str
    source: sources.Source


def run(config: Config) -> None:
    """Runs `config.phase`.

    Raises:
      UserError: anything that the user can mend.
    """
    workdir = _make_workdir(config.workdir)
    # Checked before minutes of data preparation and of training.
    backbones.get_preprocess(config.model.backbone)
    strategy = strategy_lib.get_strategy(config.runtime)
    _check_batch_size(config, strategy.num_replicas_in_sync)
    policy = precision.set_precision(config.runtime.precision)
    tfds.disable_progress_bar()
    terminal.say(f"{config.phase}: opening {config.data.dataset}")
    source = sources.open_source(config.data)
    session = Session(config, workdir, strategy, policy, source)
    try:
        _PHASES[config.phase](session)
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise UserError(
            "out of memory: lower --global_batch_size or --image_size, or "
            f"pass --cache=none ({one_line(error, 120)})"
        ) from error
    except tf.errors.DataLossError as error:
        raise UserError(
            f"{source.name} is damaged on disk ({one_line(error, 120)}): "
            "delete it from --data_dir, it is prepared again"
        ) from error


def _check_batch_size(config: Config, num_replicas: int) -> None:
    size = config.optimization.global_batch_size
    if size % num_replicas:
        raise ConfigError(
            "--global_batch_size must be a multiple of the number of replicas "
            f"({num_replicas}); got {size}"
        )


def _make_workdir(path: str) -> pathlib.Path:
    workdir = pathlib.Path(path).expanduser()
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} can't be written: {one_line(error)}"
        ) from error
    return workdir


def prepare(session: Session) -> None:
    """Audits the data set; writes `audit.json`."""
    audit = audit_lib.audit(session.source)
    metrics.write_json(session.workdir / "audit.json", audit)
    terminal.show_audit(audit)
    if audit["undecodable"]:
        first = audit["undecodable"][0]
        raise UserError(
            f"{session.source.name}: {len(audit['undecodable'])} images can't "
            f"be decoded, first {first['id']} in split {first['split']}; "
            "audit.json lists them"
        )


def transfer(session: Session) -> None:
    """Trains the head; writes `model_transfer.keras`."""
    _train_stages(session, ["transfer"])


def finetune(session: Session) -> None:
    """Trains the upper backbone too; writes `model_finetune.keras`."""
    _train_stages(session, ["finetune"])


def train(session: Session) -> None:
    """Audits, transfers, fine-tunes and evaluates on `--split` (test)."""
    # A misspelt split must not wait for the end of the training.
    session.source.check_split(session.config.evaluation.split)
    if not _is_audited(session):
        prepare(session)
    _train_stages(session, config_lib.STAGES)
    evaluate(session)


def _is_audited(session: Session) -> bool:
    path = session.workdir / "audit.json"
    if not path.exists():
        return False
    audit = metrics.read_json(path)
    same = audit["dataset"] == session.source.name
    return same and not audit["undecodable"]


def evaluate(session: Session) -> None:
    """Evaluates a saved model on a split; writes `evaluation.json`.

    Raises:
      AccuracyGateMissed: below `--assert_accuracy_at_least`.
    """
    config = session.config
    path, flag = _model_to_evaluate(session)
    with session.strategy.scope():
        model = classifier.load_classifier(path, flag)
    classifier.check_classifier(
        model,
        path,
        config.input.image_size,
        len(session.source.class_names),
    )
    batch_size = config.optimization.global_batch_size
    trainer = Trainer(
        model=model, strategy=session.strategy, global_batch_size=batch_size
    )
    split = config.evaluation.split
    examples = input_pipeline.load_examples(session.source, split, config.input)
    preprocess = backbones.get_preprocess(classifier.get_backbone(model).name)
    batches = session.strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_eval_dataset(
            examples,
            config.input,
            preprocess,
            global_batch_size=batch_size,
            input_context=context,
        )
    )
    result = evaluate_lib.evaluate(trainer.eval_step, batches)
    evaluation = evaluate_lib.summarize(
        result, split, session.source.class_names
    )
    evaluation |= {"model": str(path), "dataset": session.source.name}
    metrics.write_json(session.workdir / "evaluation.json", evaluation)
    terminal.show_evaluation(evaluation)
    gate = config.evaluation.assert_accuracy_at_least
    if evaluation["accuracy"] < gate:
        raise AccuracyGateMissed(
            f"accuracy {evaluation['accuracy']:.4f} on {split} is below "
            f"--assert_accuracy_at_least={gate}"
        )


_PHASES = {
    "prepare": prepare,
    "transfer": transfer,
    "finetune": finetune,
    "train": train,
    "evaluate": evaluate,
}


def _stage_folder(session: Session, stage: str) -> pathlib.Path:
    return session.workdir / "checkpoints" / stage


def _model_path(session: Session, stage: str) -> pathlib.Path:
    return session.workdir / f"model_{stage}.keras"


def _model_to_evaluate(session: Session) -> tuple[pathlib.Path, str]:
    if session.config.evaluation.model:
        return pathlib.Path(session.config.evaluation.model), "--model"
    for stage in reversed(config_lib.STAGES):
        path = _model_path(session, stage)
        if path.exists():
            return path, "--workdir"
    raise UserError(
        f"--workdir {session.workdir} holds no model_finetune.keras or "
        "model_transfer.keras: train one first, or pass --model"
    )


def _load_stage_data(session: Session) -> StageData:
    config, source = session.config, session.source
    if not {"train", "validation"} <= set(source.split_sizes):
        raise UserError(
            f"--dataset {source.name} must have the splits train and "
            f"validation; it has {', '.join(source.split_sizes)}"
        )
    train_examples, validation_examples = (
        input_pipeline.load_examples(source, split, config.input)
        for split in ("train", "validation")
    )
    preprocess = backbones.get_preprocess(config.model.backbone)
    return StageData(train_examples, validation_examples, preprocess)


def _train_stages(session: Session, stages: Sequence[str]) -> None:
    """Runs each stage to its saved model, or finds it done.

    Refuses changed flags before anything is read, trained or written.
    """
    keys = {stage: _checked_resume_key(session, stage) for stage in stages}
    data = None
    for stage in stages:
        done = (_stage_folder(session, stage) / "done.json").exists()
        if done and _model_path(session, stage).exists():
            terminal.say(f"{stage}: already done in {session.workdir}")
            continue
        if data is None:
            _write_config(session)
            data = _load_stage_data(session)
        _run_stage(session, stage, data, keys[stage])


def _checked_resume_key(session: Session, stage: str) -> dict[str, Any]:
    config = session.config
    key = checkpoints.resume_key(
        config, stage, session.source.name, session.precision
    )
    for earlier in config_lib.STAGES[: config_lib.STAGES.index(stage) + 1]:
        # A fine-tuned model stands on the transfer stage of the same flags.
        if earlier == stage or not config.model.init_from:
            checkpoints.check_resume_key(
                _stage_folder(session, earlier), key, session.workdir
            )
    return key


def _run_stage(
    session: Session, stage: str, data: StageData, key: dict[str, Any]
) -> None:
    workdir, config = session.workdir, session.config
    folder = _stage_folder(session, stage)
    start = time.perf_counter()
    model = _build_stage_model(session, stage)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_resume_key(folder, key)
    runner = Stage(stage, config, workdir, model, session.strategy, data)
    result = runner.run()
    _save_model(model, _model_path(session, stage))
    metrics.write_json(folder / "done.json", dataclasses.asdict(result))
    terminal.say(
        f"{stage}: best epoch {result.best_epoch}, validation accuracy "
        f"{result.validation_accuracy:.4f}; {result.seconds:.0f} s in epochs, "
        f"{time.perf_counter() - start:.0f} s in this process; saved "
        f"{_model_path(session, stage)}"
    )


def _build_stage_model(session: Session, stage: str) -> keras.Model:
    config = session.config
    num_classes = len(session.source.class_names)
    with session.strategy.scope():
        if stage == "transfer":
            model = classifier.build_classifier(
                config.model,
                image_size=config.input.image_size,
                num_classes=num_classes,
                seed=config.runtime.seed,
            )
            freeze.freeze_all(classifier.get_backbone(model))
            return model
        path = config.model.init_from or _model_path(session, "transfer")
        if not pathlib.Path(path).exists() and not config.model.init_from:
            raise UserError(
                f"--phase=finetune needs {path}: run --phase=transfer in this "
                "--workdir first, or pass --init_from"
            )
        model = classifier.load_classifier(path, "--init_from")
        classifier.check_classifier(
            model, path, config.input.image_size, num_classes
        )
        classifier.check_backbone(model, path, config.model.backbone)
        _check_policy(model, path, session.precision)
        pretrained = config.model.weights != "none"
        unfreeze = config.model.unfreeze_from
        if unfreeze == "auto" and not pretrained:
            # Nothing in a random network is worth freezing.
            unfreeze = "all"
        freeze.unfreeze_from(
            classifier.get_backbone(model),
            unfreeze,
            keep_batch_norm=pretrained,
        )
        return model


def _check_policy(model: keras.Model, path: object, policy: str) -> None:
    own = model.get_layer("pooler").dtype_policy.name
    if own != policy:
        raise ConfigError(
            f"--precision must be {own}, which {path} was trained in; got "
            f"{policy}"
        )


def _save_model(model: keras.Model, path: pathlib.Path) -> None:
    # Keras wants the suffix; the rename makes it whole or absent.
    temporary = path.with_name("incomplete_" + path.name)
    model.save(temporary)
    os.replace(temporary, path)


def _write_config(session: Session) -> None:
    """Writes `config.json`: resolved flags, versions, hardware."""
    flags: dict[str, Any] = config_lib.to_values(session.config)
    flags |= {"dataset": session.source.name, "precision": session.precision}
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details
    metrics.write_json(
        session.workdir / "config.json",
        {
            "flags": flags,
            "num_replicas": session.strategy.num_replicas_in_sync,
            "versions": {
                "flowers17_tfdata": flowers17_tfdata.__version__,
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "tensorflow_datasets": tfds.__version__,
            },
            "hardware": {
                "machine": platform.machine(),
                "processor": _processor_name(),
                "cpu_cores": len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count(),
                "gpus": [details(g).get("device_name", "GPU") for g in gpus],
            },
        },
    )


def _processor_name() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
