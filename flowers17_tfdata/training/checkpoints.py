"""The checkpoints of a stage: the latest to resume from, and the best."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import keras
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.training.workers import Workers

# The attributes of `StageCheckpoints` that are saved.
_PROGRESS = (
    *("epoch", "step", "sums", "step_secs", "seconds"),
    *("best_epoch", "best_accuracy", "best_loss"),
)


class StageCheckpoints:
    """Saves and restores everything that the rest of a stage depends on.

    Args:
      folder: the folder that all workers restore from and the chief saves to.
      model: the model of the stage.
      optimizer: the optimizer of the stage, built.
      strategy: the strategy that model and optimizer were built in.
      output: the folder that this process saves to, if it isn't the chief: all
        workers must take part in saving a replicated variable.
      workers: the processes of the run.

    Attributes (variables; `.numpy()` reads them on any number of replicas):
      epoch: int64, the number of finished epochs.
      step: int64, the number of finished steps of the next epoch.
      sums: float32 `[4]`, the `TrainTotals` of these steps.
      step_secs: float64, the wall time of these steps, seconds.
      best_accuracy, best_loss, best_epoch: the validation accuracy, the
        validation loss and the number of the kept epoch: the best one by
        accuracy, then by loss.
      seconds: float64, the wall time of the finished epochs, seconds.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
        output: pathlib.Path,
        workers: Workers,
    ):
        self._folder = folder
        self._workers = workers
        with strategy.scope():
            self.epoch = tf.Variable(0, dtype=tf.int64)
            self.step = tf.Variable(0, dtype=tf.int64)
            self.sums = tf.Variable(tf.zeros([4]))
            self.step_secs = tf.Variable(0.0, dtype=tf.float64)
            self.best_epoch = tf.Variable(0, dtype=tf.int64)
            self.best_accuracy = tf.Variable(-1.0, dtype=tf.float64)
            self.best_loss = tf.Variable(float("inf"), dtype=tf.float64)
            self.seconds = tf.Variable(0.0, dtype=tf.float64)
        # The random state of dropout, which tracking the model doesn't reach.
        seeds = [
            v.value
            for v in model.non_trainable_variables
            if "seed_generator" in v.path
        ]
        checkpoint = tf.train.Checkpoint(
            model=model,
            # Not the optimizer itself, which also tracks the flat variables:
            # the model's hold the same weights.
            optimizer=[v.value for v in optimizer.variables],
            seeds=seeds,
            **{name: getattr(self, name) for name in _PROGRESS},
        )
        # TensorFlow takes brackets in a path for a pattern.
        self._output = output
        self._links = contextlib.ExitStack()
        self._readable = _without_brackets(folder, self._links)
        output = _without_brackets(output, self._links)
        # Several, since a damaged one is skipped.
        self._latest = tf.train.CheckpointManager(
            checkpoint, str(output), max_to_keep=3
        )
        # Two, since a process killed between the two savings leaves a best
        # checkpoint that the latest one doesn't know.
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model),
            str(output / "best"),
            max_to_keep=2,
        )

    def restore(self) -> int:
        """Restores the newest intact checkpoint, if there is one.

        Damaged ones are reported and skipped.

        Returns:
          The number of finished epochs.

        Raises:
          UserError: all checkpoints are damaged, or the workers found
            different ones.
        """
        names = _newest_first(self._folder)
        for name in names:
            damage = _damage(f"{self._readable}/{name}")
            if damage:
                terminal.say(
                    f"{self._folder}/{name} is damaged and skipped: {damage}"
                )
                continue
            self._restore(self._latest.checkpoint, name)
            break
        else:
            if names:
                raise UserError(
                    f"every checkpoint in {self._folder} is damaged: pass "
                    "another --workdir to start again"
                )
        done = int(self.epoch.numpy())
        if not self._workers.agree([done, float(self.step.numpy())]):
            raise UserError(
                f"the workers found different checkpoints in {self._folder}: "
                "--workdir must be a folder that all workers share"
            )
        return done

    def save_within_epoch(
        self, step: int, sums: Sequence[tf.Tensor], seconds: float
    ) -> None:
        """Saves in the middle of an epoch.

        Args:
          step: the number of finished steps of the epoch.
          sums: the `TrainTotals` of these steps.
          seconds: the wall time of these steps, seconds.

        Raises:
          UserError: the checkpoint can't be written.
        """
        self._set_progress(step, sums, seconds)
        with self._writing():
            self._latest.save()
        # No worker may report "saved" and stop before the chief has saved.
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
            # The operating system's reason, without the op and the file.
            reason = error.message.rpartition("; ")[2].split(" [Op:")[0]
            for left in self._output.rglob("ckpt-*_temp"):
                shutil.rmtree(left, ignore_errors=True)
            raise UserError(
                "a checkpoint can't be written to "
                f"{self._output}: {one_line(reason)}"
            ) from error

    def save_if_best(self, accuracy: float, loss: float) -> None:
        """Keeps the model's current weights if they are the best so far.

        Call it before `save` records the epoch: a process that is killed in
        between repeats the epoch.

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
        """Keeps the model's current weights; call it before `save`.

        Raises:
          UserError: the checkpoint can't be written.
        """
        epoch = int(self.epoch.numpy()) + 1
        self.best_epoch.assign(epoch)
        with self._writing():
            self._best.save(checkpoint_number=epoch)

    def save(self, seconds: float) -> None:
        """Saves after one more finished epoch.

        Args:
          seconds: the wall time of the epoch, seconds.

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
        """Restores the weights of the kept epoch into the model."""
        name = f"best/ckpt-{self.best_epoch.numpy()}"
        self._restore(self._best.checkpoint, name)

    def _restore(self, checkpoint: tf.train.Checkpoint, name: str) -> None:
        """Restores every value of a checkpoint.

        Raises:
          UserError: it doesn't fit, or can't be read.
        """
        try:
            checkpoint.restore(f"{self._readable}/{name}").assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise UserError(
                f"the checkpoint {self._folder}/{name} can't be restored: "
                f"{one_line(error)}"
            ) from error


def _without_brackets(
    folder: pathlib.Path, links: contextlib.ExitStack
) -> pathlib.Path:
    """Returns a path of a folder that TensorFlow can't take for a pattern.

    Args:
      folder: the folder; it is made if it takes a link.
      links: keeps the symbolic link, if it takes one.
    """
    patterns = set("[]*?\\") - {os.sep}
    if not patterns & set(str(folder)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory(prefix="flowers17_tfdata-")
    link = pathlib.Path(links.enter_context(place), "link")
    link.symlink_to(folder.resolve(), target_is_directory=True)
    return link


def _newest_first(folder: pathlib.Path) -> list[str]:
    """Returns the names of the checkpoints in a folder.

    It lists their index files, which are written last. TensorFlow's own list of
    checkpoints may be damaged too.
    """
    numbers = [path.stem[5:] for path in folder.glob("ckpt-*.index")]
    newest_first = sorted(map(int, filter(str.isdecimal, numbers)))[::-1]
    return [f"ckpt-{number}" for number in newest_first]


def _damage(path: str) -> str:
    """Reads a whole checkpoint; returns what is wrong with it, or ''."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            # This compares the checksum.
            reader.get_tensor(name)
    # The reader raises Python's own errors for some kinds of damage.
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        return one_line(error, 160)
    return ""
