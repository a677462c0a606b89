"""Checkpoints of a stage: the last epochs to resume from, and the best one."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from flowers17_tfdata import files, terminal
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import ConfigError, UserError, one_line
from flowers17_tfdata.training.workers import Workers

# What may change between a run and its resumption without changing its
# result (or, for the devices, more than its rounding).
_FREE_TO_CHANGE = {
    "phase",
    # Whether it is done after the other stages, not how.
    "refit",
    "workdir",
    "console",
    "model_summary",
    "plot_model",
    "data_dir",
    "archive",
    "data_service",
    "xla",
    "profile_steps",
    "checkpoint_every_secs",
    "grace_secs",
    "stall_timeout_secs",
    "strategy",
    "num_virtual_devices",
    "launch_local",
    "deterministic",
    *(f.name for f in config_lib.options(config_lib.EvaluationConfig)),
    *(f.name for f in config_lib.options(config_lib.PredictConfig)),
    *(f.name for f in config_lib.options(config_lib.ExportConfig)),
    *(f.name for f in config_lib.options(config_lib.FoldersConfig)),
    *(f.name for f in config_lib.options(config_lib.CompareConfig)),
    *(f.name for f in config_lib.options(config_lib.FindLrConfig)),
}
# The flags of some stages alone; what they begin with, or all of one.
_OF_TRANSFER = ("transfer_", "feature_views")
_OF_FINETUNE = ("finetune_", "unfreeze_from", "init_from")
_OF_OTHER_STAGES = {
    "transfer": _OF_FINETUNE,
    "finetune": _OF_TRANSFER,
    # It trains as either of them does.
    "refit": (),
}


def resume_key(
    config: Config, stage: str, dataset: str, precision: str
) -> dict[str, Any]:
    """Returns the flags that a stage's result depends on.

    Args:
      config: of the run.
      stage: `transfer`, `finetune` or `refit`.
      dataset: full name, with config and version.
      precision: resolved dtype policy.
    """
    free = set(_FREE_TO_CHANGE)
    if config.model.trains_batch_norm:
        # A replica's batch decides batch-norm's statistics.
        free -= {"strategy", "num_virtual_devices"}
    key = {
        name: value
        for name, value in config_lib.to_values(config).items()
        if name not in free and not name.startswith(_OF_OTHER_STAGES[stage])
    }
    return key | {"dataset": dataset, "precision": precision}


def write_resume_key(folder: pathlib.Path, key: dict[str, Any]) -> None:
    """Records the flags that a stage was started with in its folder."""
    files.write_json(folder / "flags.json", key)


def check_resume_key(
    folder: pathlib.Path, key: dict[str, Any], workdir: pathlib.Path
) -> None:
    """Refuses to go on with other flags than a stage was started with.

    A stage that has saved nothing has nothing to lose and may start anew. Flags
    that only one of the two has are not compared (another stage's, or of
    another version).

    Raises:
      ConfigError: names the first flag that differs, with both values.
    """
    path = folder / "flags.json"
    if not path.exists() or not _has_progress(folder):
        return
    for name, old in files.read_json(path).items():
        if name in key and key[name] != old:
            raise ConfigError(
                f"--{name}: {workdir} was started with {old!r}, got "
                f"{key[name]!r}; pass the old value to resume, or another "
                "--workdir"
            )


def started_with(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the flags of the training that a workdir holds, or none."""
    for stage in config_lib.STAGES:
        folder = workdir / "checkpoints" / stage
        path = folder / "flags.json"
        if path.exists() and _has_progress(folder):
            return files.read_json(path)
    return {}


def _has_progress(folder: pathlib.Path) -> bool:
    """Whether a stage has something to lose: a checkpoint, or its end."""
    if (folder / "done.json").exists():
        # A head that was solved leaves no checkpoint.
        return True
    return tf.train.latest_checkpoint(str(folder)) is not None


class StageCheckpoints:
    """Saves and restores everything that a stage's future depends on.

    Args:
      folder: that all workers restore from, and the chief saves to.
      model: of the stage.
      optimizer: its, built.
      strategy: that both live in.
      output: where this process saves, if it isn't the chief: a replicated
        variable is saved by all.
      workers: of the strategy.

    Attributes (variables; `.numpy()` reads them on any number of replicas):
      epoch: number of finished epochs.
      step: number of finished steps of the epoch after them.
      sums: float32 `[4]`, that epoch's `TrainTotals` so far.
      step_secs: wall time of those steps.
      best_accuracy, best_loss, best_epoch: of the epoch that is kept: the
        best one by validation accuracy, then loss.
      seconds: wall time of the finished epochs.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
        output: pathlib.Path | None = None,
        workers: Workers | None = None,
    ):
        self._folder = folder
        output = output or folder
        self._workers = workers or Workers(strategy)
        with strategy.scope():
            self.epoch = tf.Variable(0, dtype=tf.int64)
            self.step = tf.Variable(0, dtype=tf.int64)
            self.sums = tf.Variable(tf.zeros([4]))
            self.step_secs = tf.Variable(0.0, dtype=tf.float64)
            self.best_epoch = tf.Variable(0, dtype=tf.int64)
            self.best_accuracy = tf.Variable(-1.0, dtype=tf.float64)
            self.best_loss = tf.Variable(float("inf"), dtype=tf.float64)
            self.seconds = tf.Variable(0.0, dtype=tf.float64)
        # Dropout's random state; tracking the model does not reach it.
        seeds = [
            v.value
            for v in model.non_trainable_variables
            if "seed_generator" in v.path
        ]
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=optimizer,
            seeds=seeds,
            epoch=self.epoch,
            step=self.step,
            sums=self.sums,
            step_secs=self.step_secs,
            best_epoch=self.best_epoch,
            best_accuracy=self.best_accuracy,
            best_loss=self.best_loss,
            seconds=self.seconds,
        )
        self._latest = tf.train.CheckpointManager(
            # A damaged one may be passed over, and counts.
            checkpoint,
            str(output),
            max_to_keep=3,
        )
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model),
            str(output / "best"),
            # A kill may leave one newer than the epoch on record.
            max_to_keep=2,
        )

    def restore(self) -> int:
        """Restores the newest whole checkpoint; returns epochs done.

        Damaged ones are named and passed over.

        Raises:
          UserError: there are some, but all are damaged; or the workers found
        different ones.
        """
        paths = _newest_first(self._folder)
        for path in paths:
            damage = _damage(path)
            if damage:
                terminal.say(f"{path} is damaged and passed over: {damage}")
                continue
            _restore(self._latest.checkpoint, path)
            break
        else:
            if paths:
                raise UserError(
                    f"no checkpoint in {self._folder} is whole: pass another "
                    "--workdir to start anew"
                )
        done = int(self.epoch.numpy())
        if not self._workers.agree([done, float(self.step.numpy())]):
            raise UserError(
                f"the workers found different checkpoints in {self._folder}: "
                "--workdir must be a folder that all of them share"
            )
        return done

    def save_within_epoch(
        self, step: int, sums: Sequence[tf.Tensor], seconds: float
    ) -> None:
        """Saves in the middle of an epoch.

        Args:
          step: finished steps of the epoch.
          sums: their `TrainTotals`.
          seconds: their wall time.

        Raises:
          UserError: the checkpoint can't be written.
        """
        self._set_progress(step, sums, seconds)
        with self._writing():
            self._latest.save()
        # None stops, or is killed with, "saved" before the chief has.
        self._workers.barrier()

    def _set_progress(self, step: int, sums, seconds: float) -> None:
        self.step.assign(step)
        self.sums.assign(tf.stack(sums))
        self.step_secs.assign(seconds)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except tf.errors.OpError as error:
            # The operating system's reason, without op and temporary file.
            reason = error.message.rpartition("; ")[2].split(" [Op:")[0]
            raise UserError(
                "a checkpoint can't be written to "
                f"{self._latest.directory}: {one_line(reason)}"
            ) from error

    def save_if_best(self, accuracy: float, loss: float) -> None:
        """Keeps the model's weights as they are now, if none were better.

        To be called before `save` records the epoch: a kill in between
        repeats it.

        Raises:
          UserError: the checkpoint can't be written.
        """
        before = (self.best_accuracy.numpy(), -self.best_loss.numpy())
        if (accuracy, -loss) <= before:
            return
        self.best_accuracy.assign(accuracy)
        self.best_loss.assign(loss)
        self.keep()

    def keep(self) -> None:
        """Keeps the model's weights as they are now, whatever they are worth.

        To be called as `save_if_best`.

        Raises:
          UserError: the checkpoint can't be written.
        """
        epoch = int(self.epoch.numpy()) + 1
        self.best_epoch.assign(epoch)
        with self._writing():
            self._best.save(checkpoint_number=epoch)

    def save(self, seconds: float) -> None:
        """Records one more finished epoch.

        Raises:
          UserError: the checkpoint can't be written.
        """
        self.epoch.assign_add(1)
        self.seconds.assign_add(seconds)
        self._set_progress(0, tf.zeros([4]), 0.0)
        with self._writing():
            self._latest.save()
        self._workers.barrier()

    def restore_best(self) -> None:
        """Puts the kept epoch's weights into the model."""
        path = f"{self._folder}/best/ckpt-{self.best_epoch.numpy()}"
        _restore(self._best.checkpoint, path)


def _newest_first(folder: pathlib.Path) -> list[str]:
    """Returns the paths of the checkpoints in a folder.

    By their files, not by TensorFlow's list of them, which may be damaged too:
    the index is written last.
    """
    indexes = [p for p in folder.glob("ckpt-*.index") if _number(p) >= 0]
    indexes.sort(key=_number, reverse=True)
    return [str(path.with_suffix("")) for path in indexes]


def _number(index: pathlib.Path) -> int:
    digits = index.stem.partition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _damage(path: str) -> str:
    """Reads all of a checkpoint; returns what is wrong with it, or ''."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            # Compares the checksum.
            reader.get_tensor(name)
    # Of damages that it knows no error for, the reader makes Python's own.
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        return one_line(error, 160)
    return ""


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores every value of a checkpoint, or raises a `UserError`."""
    try:
        checkpoint.restore(path).assert_consumed()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise UserError(
            f"the checkpoint {path} can't be restored: {one_line(error)}"
        ) from error
