"""What each `--phase` does."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import filelock
import keras
import tensorflow as tf

from flowers17_tfdata import config as config_lib
from flowers17_tfdata.benchmark.run import benchmark
from flowers17_tfdata.config import Config
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.errors import (
    AccuracyGateMissed,
    ConfigError,
    UserError,
    WorkerLost,
    one_line,
)
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import load_examples
from flowers17_tfdata.models import backbones, classifier, folding
from flowers17_tfdata.results import evaluate as evaluate_lib
from flowers17_tfdata.results import metrics, terminal
from flowers17_tfdata.session import Session, open_session
from flowers17_tfdata.stages import train_stages
from flowers17_tfdata.training import loop
from flowers17_tfdata.training.trainer import Trainer

# What a collective ends with when one of its workers died.
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def run(config: Config) -> None:
    """Runs `config.phase`.

    Raises:
      UserError: anything that the user can mend.
    """
    with _errors_in_one_line(config), open_session(config) as session:
        if session.workers.count > 1 and config.phase == "benchmark":
            raise ConfigError(
                "--phase=benchmark goes with one worker; got "
                f"{session.workers.count}"
            )
        with _lock(session):
            _PHASES[config.phase](session)


@contextlib.contextmanager
def _errors_in_one_line(config: Config) -> Iterator[None]:
    """Turns TensorFlow's errors that a user can act on into `UserError`s."""
    try:
        yield
    except _LOST_WORKER as error:
        raise WorkerLost(
            "another worker of this run is gone, or can't be reached "
            f"({type(error).__name__}): the last checkpoint is kept; start all "
            "workers again"
        ) from error
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise UserError(
            "out of memory: lower --global_batch_size or --image_size, or "
            f"pass --cache=none ({one_line(error, 120)})"
        ) from error
    except tf.errors.DataLossError as error:
        raise UserError(
            f"{config.data.dataset} is damaged on disk "
            f"({one_line(error, 120)}): delete it from --data_dir, it is "
            "prepared again"
        ) from error


@contextlib.contextmanager
def _lock(session: Session) -> Iterator[None]:
    """Keeps other runs that train out of the workdir.

    The system drops the lock with the process, however that ends.
    """
    phase = session.config.phase
    if phase in ("evaluate", "benchmark") or not session.workers.is_chief:
        yield
        return
    path = session.workdir / ".lock"
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"--workdir {session.workdir} is in use by another run (it holds "
            f"{path}): wait for it, stop it, or pass another --workdir"
        ) from error
    with lock:
        yield


def prepare(session: Session) -> None:
    """Audits the data set; writes `audit.json`."""
    audit = audit_lib.audit(session.source)
    metrics.write_json(session.output / "audit.json", audit)
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
    train_stages(session, ["transfer"])


def finetune(session: Session) -> None:
    """Trains the upper backbone too; writes `model_finetune.keras`."""
    train_stages(session, ["finetune"])


def train(session: Session) -> None:
    """Audits, transfers, fine-tunes and evaluates on `--split` (test)."""
    # A misspelt split must not wait for the end of the training.
    session.source.check_split(session.config.evaluation.split)
    if not _is_audited(session):
        prepare(session)
    train_stages(session, config_lib.STAGES)
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
    path, model = _load_evaluated_model(session)
    batch_size = config.optimization.global_batch_size
    preprocess = backbones.get_preprocess(classifier.get_backbone(model).name)
    trainer = Trainer(
        model=model,
        strategy=session.strategy,
        global_batch_size=batch_size,
        device_stage=input_pipeline.make_device_stage(
            config.input, preprocess, session.compute_dtype
        ),
        xla=loop.uses_xla(config.runtime.xla),
    )
    split = config.evaluation.split
    examples = load_examples(session.source, split, config.input)
    batches = session.strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.make_eval_dataset(
            examples,
            config.input,
            preprocess,
            global_batch_size=batch_size,
            compute_dtype=session.compute_dtype,
            input_context=context,
        )
    )
    result = evaluate_lib.evaluate(trainer.eval_step, batches)
    evaluation = evaluate_lib.summarize(
        result, split, session.source.class_names
    )
    evaluation |= {"model": str(path), "dataset": session.source.name}
    metrics.write_json(session.output / "evaluation.json", evaluation)
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
    "benchmark": benchmark,
}


def _load_evaluated_model(
    session: Session,
) -> tuple[pathlib.Path, keras.Model]:
    config = session.config
    path, flag = _model_to_evaluate(session)
    with session.strategy.scope():
        model = classifier.load_classifier(path, flag)
        if config.model.fold_batch_norm and folding.is_functional(model):
            model = folding.fold_batch_norm(model)
    classifier.check_classifier(
        model,
        path,
        config.input.image_size,
        len(session.source.class_names),
    )
    return path, model


def _model_to_evaluate(session: Session) -> tuple[pathlib.Path, str]:
    if session.config.evaluation.model:
        return pathlib.Path(session.config.evaluation.model), "--model"
    for stage in reversed(config_lib.STAGES):
        path = session.model_path(stage)
        if path.exists():
            return path, "--workdir"
    raise UserError(
        f"--workdir {session.workdir} holds no model_finetune.keras or "
        "model_transfer.keras: train one first, or pass --model"
    )
