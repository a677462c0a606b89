"""What each `--phase` does."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import filelock
import keras
import tensorflow as tf

from flowers17_tfdata import files, terminal, timings, trained_model
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import class_folders, folder_source
from flowers17_tfdata.errors import (
    AccuracyGateMissed,
    ConfigError,
    UserError,
    WorkerLost,
    one_line,
)
from flowers17_tfdata.phases.benchmark.benchmark import benchmark
from flowers17_tfdata.phases.predict.predict import predict
from flowers17_tfdata.phases.train import train_stages
from flowers17_tfdata.scoring import pooling
from flowers17_tfdata.session import Session, open_session
from flowers17_tfdata.training import checkpoints

# Phases that write what another run of them would write at the same time.
_LOCKING = ("prepare", "train", "find_lr", *config_lib.STAGES)

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
    terminal.configure(
        config.runtime.console,
        # Standard output is for the predictions.
        on_stderr=config.phase == "predict",
    )
    if config.runtime.console in ("quiet", "json"):
        # Else Keras draws a bar of its own when it downloads weights.
        keras.utils.disable_interactive_logging()
    with _errors_in_one_line(config):
        if config.phase in _PHASES_WITHOUT_DATA:
            _PHASES_WITHOUT_DATA[config.phase](config)
        elif config_lib.runs_all_folds(config):
            # Each was run by a process of its own.
            _pool_folds(config)
        else:
            _run_on_data(config)


def _run_on_data(config: Config) -> None:
    """Runs a phase that looks at the data set."""
    with open_session(config) as session:
        if session.workers.count > 1 and config.phase == "benchmark":
            raise ConfigError(
                "--phase=benchmark goes with one worker; got "
                f"{session.workers.count}"
            )
        if config.phase in _LOCKING:
            # Before the record of what was trained on is written over.
            started = checkpoints.started_with(session.workdir)
            session.check_unchanged(started.get("dataset", ""))
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
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError) as error:
        if not config.data.dataset.startswith(folder_source.PREFIX):
            raise
        # Behind the names of the op and the iterator, before the node's.
        file = error.message.partition(" [[")[0]
        file = re.sub(r"^.*?(: |\}\} )(?=/)", "", file, flags=re.DOTALL)
        raise UserError(
            f"--dataset={config.data.dataset}: a file can't be read any more "
            f"({one_line(file, 200)})"
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
    if phase not in _LOCKING or not session.workers.is_chief:
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
    """Audits the data set; writes `audit.json` and `splits.csv`."""
    source = session.source
    with timings.measure(session.output, "audit"):
        with terminal.ScanProgress(sum(source.split_sizes.values())) as bar:
            scan = source.scan(bar.scanned)
        audit = audit_lib.audit(source, scan)
    files.write_json(session.output / "audit.json", audit)
    class_folders.write_splits(
        session.output / "splits.csv", source.class_names, scan
    )
    terminal.show_audit(audit)
    in_a_split = [file for file in audit["undecodable"] if file["split"]]
    if in_a_split:
        first = in_a_split[0]
        raise UserError(
            f"{source.name}: {len(in_a_split)} images can't "
            f"be decoded, first {first['id']} in split {first['split']}; "
            "audit.json lists them"
        )


def transfer(session: Session) -> None:
    """Fits the head; writes `model_transfer.keras`."""
    train_stages(session, ["transfer"])


def finetune(session: Session) -> None:
    """Trains the upper backbone too; writes `model_finetune.keras`."""
    train_stages(session, ["finetune"])


def refit(session: Session) -> None:
    """Trains the better stage's model on validation, too.

    Writes `model_refit.keras`.
    """
    train_stages(session, ["refit"])


def train(session: Session) -> None:
    """Audits, runs all stages, evaluates on `--split`, and reports."""
    # A misspelt split must not wait for the end of the training.
    session.source.check_split(session.config.evaluation.split)
    if not _is_audited(session):
        prepare(session)
    train_stages(session, config_lib.stages_of_training(session.config))
    evaluation = _evaluate(session)
    # A missed gate is the very moment to look at one.
    report(session)
    _check_gate(session.config, evaluation)


def _is_audited(session: Session) -> bool:
    path = session.workdir / "audit.json"
    if not path.exists():
        return False
    audit = files.read_json(path)
    same = audit["dataset"] == session.source.name
    return same and not any(file["split"] for file in audit["undecodable"])


def evaluate(session: Session) -> None:
    """Evaluates a saved model on a split; see `trained.evaluate_split`.

    Raises:
      AccuracyGateMissed: below `--assert_accuracy_at_least`.
    """
    _check_gate(session.config, _evaluate(session))


def _evaluate(session: Session) -> dict[str, Any]:
    split = session.config.evaluation.split
    with timings.measure(session.output, "evaluation"):
        trained = trained_model.load_model_for(session)
        evaluation, _ = trained_model.evaluate_split(session, trained, split)
    terminal.show_evaluation(evaluation)
    return evaluation


def _pool_folds(config: Config) -> None:
    """Writes `cross_validation.json`, and shows it."""
    workdir = pathlib.Path(config.workdir).expanduser()
    result = pooling.pool(workdir, config.data.folds)
    files.write_json(workdir / "cross_validation.json", result)
    terminal.show_cross_validation(result)
    _check_gate(config, result)


def _check_gate(config: Config, evaluation: dict[str, Any]) -> None:
    gate = config.evaluation.assert_accuracy_at_least
    if evaluation["accuracy"] < gate:
        raise AccuracyGateMissed(
            f"accuracy {evaluation['accuracy']:.4f} on {evaluation['split']} "
            f"is below --assert_accuracy_at_least={gate}"
        )


def export(session: Session) -> None:
    """Writes the model for use elsewhere; see `export.run`."""
    # Imported here, as below: converters and drawing libraries take seconds.
    from flowers17_tfdata.phases.export.export import export_model

    export_model(session)


def report(session: Session) -> None:
    """Writes `report.html`; see `report.run`."""
    from flowers17_tfdata.phases.report.report import write_report

    write_report(session)


def folders(session: Session) -> None:
    """Writes the splits as class folders."""
    if not session.workers.is_chief:
        return
    path = session.config.folders.folders_dir or session.output / "folders"
    if class_folders.write(session.source, path):
        terminal.say(f"class folders written to {path}")
    else:
        terminal.say(f"class folders are in {path} already")


def compare(config: Config) -> None:
    """Compares two recipes; see `compare.run`."""
    from flowers17_tfdata.phases.compare import compare

    compare.compare(config)


# Of a configuration alone: they don't open the data set.
_PHASES_WITHOUT_DATA = {"predict": predict, "compare": compare}


def find_lr(session: Session) -> None:
    """Writes `find_lr.html`; see `find_lr.run`."""
    from flowers17_tfdata.phases.find_lr.range_test import run_range_test

    run_range_test(session)


_PHASES = {
    "prepare": prepare,
    "transfer": transfer,
    "finetune": finetune,
    "refit": refit,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "folders": folders,
    "find_lr": find_lr,
    "benchmark": benchmark,
}
