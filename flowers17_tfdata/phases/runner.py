"""Runs a phase: opens what it needs, and turns errors into one line."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator

import filelock
import keras
import tensorflow as tf

from flowers17_tfdata import files, terminal, timings, trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import (
    ConfigError,
    UserError,
    WorkerLost,
    one_line,
)
from flowers17_tfdata.phases import evaluate
from flowers17_tfdata.phases.registry import PHASES, Phase
from flowers17_tfdata.phases.report import folds
from flowers17_tfdata.session import Session, open_session
from flowers17_tfdata.training import cluster, resume

# The file in a workdir that keeps other runs out.
_LOCK = ".lock"

# How a collective operation ends when one of its workers died.
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def run(config: Config) -> None:
    """Runs `config.phase`.

    Raises:
      UserError: any error that the user can correct.
    """
    phase = PHASES[config.phase]
    terminal.configure(
        config.runtime.console,
        # Standard output is for the predictions.
        on_stderr=phase.name == "predict",
    )
    if config.runtime.console in ("quiet", "json"):
        # Otherwise Keras draws its own progress bar when it downloads weights.
        keras.utils.disable_interactive_logging()
    with _errors_in_one_line(config):
        if not phase.opens_data:
            _run_without_data(phase, config)
        elif config.data.runs_all_folds:
            # A process of its own has run each fold.
            evaluate.check_gate(config, folds.pool_folds(config))
        else:
            _run_on_data(phase, config)


def _run_without_data(phase: Phase, config: Config) -> None:
    resolver = cluster.find_cluster()
    if resolver is not None and cluster.place(resolver)[1]:
        terminal.say(f"{phase.name}: only worker 0 does this")
        return
    phase.run(config)


def _run_on_data(phase: Phase, config: Config) -> None:
    if phase.reads_model:
        # Before the data set is opened, which may take minutes.
        trained_model.find_model(config)
    workdir = pathlib.Path(config.workdir).expanduser()
    with (
        files.removed_if_empty(workdir, timings.FILE_NAME, _LOCK),
        open_session(config, phase.trains, phase.writes_run) as session,
    ):
        workers = session.workers.count
        if phase.one_worker and workers > 1:
            raise ConfigError(
                f"--phase={phase.name} goes with one worker; got {workers}"
            )
        if phase.writes_run:
            # Before the record of what was trained on is overwritten.
            started = resume.started_with(session.workdir)
            session.check_unchanged(started.get("dataset", ""))
        with _lock(phase, session):
            phase.run(session)


@contextlib.contextmanager
def _errors_in_one_line(config: Config) -> Iterator[None]:
    """Turns TensorFlow's errors that a user can act on into `UserError`s."""
    try:
        yield
    except _LOST_WORKER as error:
        raise WorkerLost(
            "another worker of this run is gone or can't be reached "
            f"({type(error).__name__}): the last checkpoint is kept; start all "
            "workers again"
        ) from error
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        file, reason = files.full_disk(error)
        if reason:
            raise UserError(
                f"{file} can't be written: {reason}; free some, and start the "
                "same command again"
            ) from error
        raise UserError(
            "out of memory: lower --global_batch_size or --image_size, or "
            f"pass --cache=none ({one_line(error, 120)})"
        ) from error
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError) as error:
        if config.data.own_images is None:
            raise
        # The file's name follows those of the op and the iterator, and
        # precedes the node's.
        file = error.message.partition(" [[")[0]
        file = re.sub(r"^.*?(: |\}\} )(?=/)", "", file, flags=re.DOTALL)
        raise UserError(
            f"--dataset={config.data.dataset}: a file can't be read any more "
            f"({one_line(file, 200)})"
        ) from error
    except tf.errors.DataLossError as error:
        raise UserError(
            f"{config.data.dataset} is damaged on disk "
            f"({one_line(error, 120)}): delete it from --data_dir, and it is "
            "prepared again"
        ) from error


@contextlib.contextmanager
def _lock(phase: Phase, session: Session) -> Iterator[None]:
    """Keeps other runs that write the same files out of the workdir.

    The operating system releases the lock when the process ends.
    """
    if not phase.writes_run or not session.workers.is_chief:
        yield
        return
    path = session.workdir / _LOCK
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
