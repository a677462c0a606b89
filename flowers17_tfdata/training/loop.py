"""The epochs of one stage: train, validate, record, save."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.scoring.scores import evaluate
from flowers17_tfdata.training import metrics, optimizers
from flowers17_tfdata.training.checkpoints import StageCheckpoints
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.profiler import Profiler
from flowers17_tfdata.training.trainer import EvalTotals, Trainer, TrainTotals
from flowers17_tfdata.training.workers import Workers

# Reading a value waits for the device; every step would keep it from running
# ahead, every epoch would train on NaN for minutes.
_STEPS_BETWEEN_CHECKS = 10


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage trains and validates on.

    Attributes:
      num_examples: to train on.
      make_train: `(initial_epoch, initial_step, input_context)` to the endless
        dataset.
      make_validation: `(input_context)` to one pass of validation; None: the
        stage isn't validated, its last epoch is kept.
      make_calibration: to clean batches of what is trained on, for the
        statistics of batch-norm that has none yet, or trains; None: they stay.
      device_stage: from a replica's `Batch` to the model's inputs.
    """

    num_examples: int
    make_train: Callable[
        [int, int, tf.distribute.InputContext], tf.data.Dataset
    ]
    make_validation: (
        Callable[[tf.distribute.InputContext], tf.data.Dataset] | None
    )
    make_calibration: Callable[[], tf.data.Dataset] | None = None
    device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs

    def calibration_batches(self) -> Iterator[tf.Tensor]:
        """Returns the model's inputs, of what `make_calibration` makes."""
        return map(self.device_stage, self._calibration)

    @functools.cached_property
    def _calibration(self) -> tf.data.Dataset:
        # Once: each one made would be traced and compiled anew.
        return self.make_calibration()


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What a stage trains, and how it takes its steps.

    Attributes:
      model: with this stage's layers frozen; built in the strategy's scope.
        What it takes is what the stage's data gives: images, or features.
      training_model: shares the layers of `model`, for training images of
        another size; None: `model` itself.
      options_of: whose epochs, optimizer and learning rate the stage trains
        by: `transfer` or `finetune`.
      rate_scales: each trainable variable's share of the learning rate; None:
        all of it.
      steps_per_call: training steps between two looks of Python at the
        device.
      xla_update: compile the optimizer's update (see `Trainer`).
    """

    model: keras.Model
    training_model: keras.Model | None = None
    options_of: str = "finetune"
    rate_scales: Sequence[np.ndarray] | None = None
    steps_per_call: int = 1
    xla_update: bool = False


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The epoch of a stage that was kept, and the wall time of all of them.

    Attributes:
      best_epoch: the kept one.
      validation_accuracy: its; None: the stage isn't validated.
      validation_loss: likewise, nats.
      seconds: of all epochs.
    """

    best_epoch: int
    validation_accuracy: float | None
    validation_loss: float | None
    seconds: float


class Stage:
    """One stage (`transfer`, `finetune` or `refit`) of one run.

    Args:
      name: of the stage.
      config: of the run.
      workdir: of the run.
      trained: the model, and what goes with it.
      strategy: the current one.
      data: what to train and validate on.
      stop: whether to save and stop.
      output: where this process writes, if it isn't the chief.
      workers: of the strategy.
      schedule: learning rate by step, instead of the stage's own.

    Attributes:
      model: the model that is trained.
      trainer: takes its training and evaluation steps.
      data: what it is trained and validated on.
      steps_per_call: training steps that one call of the trainer takes.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        workdir: pathlib.Path,
        trained: Trainable,
        strategy: tf.distribute.Strategy,
        data: StageData,
        stop: StopRequest | None = None,
        output: pathlib.Path | None = None,
        workers: Workers | None = None,
        schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
    ):
        self.name = name
        self._config = config
        self._output = output = output or workdir
        self._workers = workers or Workers(strategy)
        self.model = model = trained.model
        self._strategy = strategy
        self.data = data
        options = config.optimization
        self._batch_size = options.global_batch_size
        self._prefix = prefix = trained.options_of
        self._epochs = getattr(options, f"{prefix}_epochs")
        self._steps_per_epoch = input_pipeline.steps_per_epoch(
            data.num_examples, self._batch_size
        )
        self._schedule = schedule or optimizers.learning_rate_schedule(
            options,
            getattr(options, f"{prefix}_learning_rate"),
            self._epochs,
            self._steps_per_epoch,
        )
        with strategy.scope():
            optimizer = optimizers.make_optimizer(
                getattr(options, f"{prefix}_optimizer"),
                self._schedule,
                options,
                scale_loss=keras.config.dtype_policy().name == "mixed_float16",
                rate_scales=trained.rate_scales,
            )
        self.trainer = Trainer(
            model=model,
            strategy=strategy,
            global_batch_size=self._batch_size,
            optimizer=optimizer,
            label_smoothing=options.label_smoothing,
            xla=uses_xla(config.runtime.xla),
            xla_update=trained.xla_update and config.runtime.xla != "off",
            deterministic=config.runtime.deterministic,
            training_model=trained.training_model,
            device_stage=data.device_stage,
        )
        self.steps_per_call = trained.steps_per_call
        self._stop = stop or StopRequest()
        self._saved_at = time.monotonic()
        self._profiler = Profiler(
            config_lib.profile_range(config.runtime),
            output / "tensorboard" / name,
        )
        self._checkpoints = StageCheckpoints(
            workdir / "checkpoints" / name,
            model,
            optimizer,
            strategy,
            output / "checkpoints" / name,
            self._workers,
        )

    def run(self) -> StageResult:
        """Trains from the newest checkpoint to the last epoch.

        Leaves the weights of the best validated epoch in the model; where
        nothing is validated, those of the last one.

        Raises:
          UserError: the loss is not finite; the last checkpoint stays.
          Preempted: it was asked to stop, and saved.
        """
        done = self._checkpoints.restore()
        step = int(self._checkpoints.step.numpy())
        if done or step:
            terminal.say(
                f"{self.name}: resuming after epoch {done}"
                + (f" and {step} steps" if step else "")
            )
        else:
            self._measure_frozen_batch_norm()
        writer = metrics.MetricsWriter(self._output, self.name, done)
        if done < self._epochs:
            batches = iter(self._train_batches(done, step))
            for epoch in range(done, self._epochs):
                self._run_epoch(epoch, batches, writer)
                self._stop.check(f"{self.name} epoch {epoch + 1} is saved")
        writer.close()
        self._profiler.stop()
        self._checkpoints.restore_best()
        kept, validated = self._checkpoints, self.data.make_validation
        return StageResult(
            best_epoch=int(kept.best_epoch.numpy()),
            validation_accuracy=(
                float(kept.best_accuracy.numpy()) if validated else None
            ),
            validation_loss=(
                float(kept.best_loss.numpy()) if validated else None
            ),
            seconds=float(kept.seconds.numpy()),
        )

    def try_steps(self, num_steps: int) -> Iterator[tuple[float, float]]:
        """Takes the stage's first steps one by one; saves nothing.

        Args:
          num_steps: how many at most.

        Yields:
          A step's learning rate, and the mean training loss of its batch
          before the weights move by it, nats. The same rate again where loss
          scaling left a step out.
        """
        self._measure_frozen_batch_norm()
        batches = iter(self._train_batches(0, 0))
        for _ in range(num_steps):
            rate = float(self.trainer.optimizer.learning_rate)
            totals = self.trainer.train_steps(batches, tf.constant(1))
            self._stop.alive()
            yield rate, float(totals.loss) / float(totals.examples)

    def _run_epoch(
        self,
        epoch: int,
        batches: Iterator,
        writer: metrics.MetricsWriter,
    ) -> None:
        totals, train_secs = self._train_epoch(epoch, batches)
        start = time.perf_counter()
        loss, accuracy = self._validate(epoch)
        examples = float(totals.examples)
        step = (epoch + 1) * self._steps_per_epoch
        line = {
            "phase": self.name,
            "epoch": epoch + 1,
            "step": step,
            "train_loss": float(totals.loss) / examples,
            "train_accuracy": float(totals.correct) / examples,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": float(self._schedule(step - 1)),
            "images_per_sec": examples / train_secs,
            "data_wait_fraction": float(totals.wait_secs) / train_secs,
            "seconds": train_secs + time.perf_counter() - start,
        }
        # Before the checkpoint: a line too many is dropped when the epoch
        # runs again; a missing one would never come back.
        writer.write(line)
        self._checkpoints.save(line["seconds"])
        self._saved_at = time.monotonic()
        terminal.say(
            f"{self.name} epoch {epoch + 1}/{self._epochs}: "
            f"train loss {line['train_loss']:.3f} "
            f"accuracy {line['train_accuracy']:.3f}, "
            + (
                f"validation loss {loss:.3f} accuracy {accuracy:.3f}, "
                if loss is not None
                else ""
            )
            + f"{line['images_per_sec']:.1f} images/s "
            f"(wait {line['data_wait_fraction']:.1%}), "
            f"{line['seconds']:.0f} s",
            **line,
        )

    def _validate(self, epoch: int) -> tuple[float | None, float | None]:
        """Validates the weights as they are, and keeps the best.

        Where nothing is validated, it keeps the last epoch's.

        Returns:
          Loss and accuracy; None: the stage isn't validated.
        """
        last = epoch + 1 == self._epochs
        if self.data.make_validation is None:
            if last:
                self._measure_trained_batch_norm()
                self._checkpoints.keep()
            return None, None
        self._measure_trained_batch_norm()
        result = evaluate(self._eval_step, self._validation_batches)
        self._checkpoints.save_if_best(result["accuracy"], result["loss"])
        return result["loss"], result["accuracy"]

    def _train_epoch(
        self, epoch: int, batches: Iterator
    ) -> tuple[TrainTotals, float]:
        """Trains to the end of an epoch; returns its sums and its seconds."""
        # Not zero where a run that stopped within the epoch is resumed.
        totals = TrainTotals(*tf.unstack(self._checkpoints.sums))
        step = checked = int(self._checkpoints.step.numpy())
        title = f"{self.name} epoch {epoch + 1}/{self._epochs}"
        start = time.perf_counter() - float(self._checkpoints.step_secs.numpy())
        with terminal.EpochProgress(title, self._steps_per_epoch) as progress:
            while step < self._steps_per_epoch:
                count = min(self.steps_per_call, self._steps_per_epoch - step)
                self._profiler.before(count)
                sums = self.trainer.train_steps(batches, tf.constant(count))
                self._profiler.after(count)
                self._stop.alive()
                totals = TrainTotals(
                    *(a + b for a, b in zip(totals, sums, strict=True))
                )
                step += count
                last, due = step == self._steps_per_epoch, self._save_is_due()
                if last or due or step - checked >= _STEPS_BETWEEN_CHECKS:
                    self._check_finite(totals, epoch, checked + 1, step)
                    checked = step
                rate = step * self._batch_size / (time.perf_counter() - start)
                progress.advance(count, f"{rate:.1f} images/s")
                if due:
                    seconds = time.perf_counter() - start
                    self._save_within_epoch(epoch, step, totals, seconds)
        return totals, time.perf_counter() - start

    def _eval_step(self, batch: Batch) -> EvalTotals:
        self._stop.alive()
        return self.trainer.eval_step(batch)

    def _save_is_due(self) -> bool:
        """Whether it is time to save, or any worker is asked to stop."""
        every = self._config.runtime.checkpoint_every_secs
        late = every and time.monotonic() - self._saved_at >= every
        return self._workers.any(bool(late or self._stop.requested))

    def _save_within_epoch(
        self, epoch: int, step: int, totals: TrainTotals, seconds: float
    ) -> None:
        self._checkpoints.save_within_epoch(step, totals, seconds)
        self._saved_at = time.monotonic()
        self._stop.check(
            f"{self.name} is saved in epoch {epoch + 1}, after step {step}"
        )

    def _check_finite(
        self, totals: TrainTotals, epoch: int, first: int, step: int
    ) -> None:
        if math.isfinite(float(totals.loss)):
            return
        raise UserError(
            f"the training loss became {float(totals.loss)} in {self.name} "
            f"epoch {epoch + 1}, step {first} to {step}: try a lower "
            f"--{self._prefix}_learning_rate"
            + (
                f", in another --workdir; epoch {epoch}'s checkpoint is kept"
                if epoch
                else ""
            )
        )

    def _measure_frozen_batch_norm(self) -> None:
        """Before the first step: there are no statistics to keep."""
        if self.data.make_calibration and not self._trained_batch_norm:
            batch_norm.calibrate(self.model, self.data.calibration_batches())

    def _measure_trained_batch_norm(self) -> None:
        """Before the weights, as they are now, are validated or kept.

        It trained on the batches' own statistics; evaluated, and saved, it is
        with those of the data.
        """
        if self.data.make_calibration and self._trained_batch_norm:
            self._calibration.run(self.data.calibration_batches())

    @functools.cached_property
    def _calibration(self) -> batch_norm.Calibration:
        return batch_norm.Calibration(self.model, self._trained_batch_norm)

    @functools.cached_property
    def _trained_batch_norm(self) -> list[keras.layers.BatchNormalization]:
        layers = batch_norm.batch_norm_layers(self.model)
        return [layer for layer in layers if layer.trainable]

    def _train_batches(self, initial_epoch: int, initial_step: int):
        return self._strategy.distribute_datasets_from_function(
            functools.partial(self.data.make_train, initial_epoch, initial_step)
        )

    @functools.cached_property
    def _validation_batches(self):
        # Once: each one made would be traced and compiled anew.
        return self._strategy.distribute_datasets_from_function(
            self.data.make_validation
        )


def uses_xla(xla: str) -> bool:
    """Turns `--xla=auto` into on for GPUs, off for CPUs."""
    if xla == "auto":
        return bool(tf.config.list_physical_devices("GPU"))
    return xla == "on"
