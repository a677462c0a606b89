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
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.config.optimization import StageOptions
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.training import metrics, optimizers
from flowers17_tfdata.training.checkpoints import StageCheckpoints
from flowers17_tfdata.training.inference import Inference
from flowers17_tfdata.training.precision import uses_xla
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.profiler import Profiler
from flowers17_tfdata.training.trainer import Trainer, TrainTotals
from flowers17_tfdata.training.workers import Workers

# Reading a value waits for the device. At every step that would keep Python
# from running ahead; once per epoch would train on NaN for minutes.
_STEPS_BETWEEN_CHECKS = 10

Schedule = keras.optimizers.schedules.LearningRateSchedule


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage trains and validates on.

    Attributes:
      num_examples: the number of training examples.
      make_train: from `(initial_epoch, initial_step, input_context)` to the
        infinite training dataset.
      make_validation: from `input_context` to one pass over the validation
        examples; None: the stage isn't validated, and keeps its last epoch.
      make_statistics: returns clean batches of training examples, on which
        batch-norm statistics are measured; None: they aren't measured.
      device_stage: from a replica's `Batch` to the model's inputs.
    """

    num_examples: int
    make_train: Callable[
        [int, int, tf.distribute.InputContext], tf.data.Dataset
    ]
    make_validation: (
        Callable[[tf.distribute.InputContext], tf.data.Dataset] | None
    )
    make_statistics: Callable[[], tf.data.Dataset] | None = None
    device_stage: Callable[[Batch], tf.Tensor] = lambda batch: batch.inputs

    def statistics_batches(self) -> Iterator[tf.Tensor]:
        """Returns the model's inputs for the batches of `make_statistics`."""
        return map(self.device_stage, self._statistics)

    @functools.cached_property
    def _statistics(self) -> tf.data.Dataset:
        # Made once: each new dataset would be traced and compiled again.
        return self.make_statistics()


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What a stage trains, and how.

    Attributes:
      model: the model, with this stage's layers frozen, built in the strategy's
        scope. It takes images or features, whichever the stage's data holds.
      options: the epochs, the optimizer and the learning rate.
      training_model: a model that shares the layers of `model` and takes
        training images of another size; None: `model` itself.
      rate_scales: the factor of the learning rate for each trainable variable;
        None: 1 for all.
      steps_per_call: the number of training steps between two returns to
        Python.
      xla_update: compile the optimizer's update (see `Trainer`).
    """

    model: keras.Model
    options: StageOptions
    training_model: keras.Model | None = None
    rate_scales: Sequence[np.ndarray] | None = None
    steps_per_call: int = 1
    xla_update: bool = False


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The kept epoch of a stage, and the wall time of all its epochs.

    Attributes:
      best_epoch: the number of the kept epoch.
      validation_accuracy: its accuracy; None: the stage isn't validated.
      validation_loss: its loss, nats; None: the stage isn't validated.
      seconds: the wall time of all epochs, seconds.
    """

    best_epoch: int
    validation_accuracy: float | None
    validation_loss: float | None
    seconds: float


class Stage:
    """One stage (`transfer`, `finetune` or `refit`) of one run.

    Args:
      name: the name of the stage.
      config: the configuration of the run.
      workdir: the folder of the run.
      trained: the model, and how it is trained.
      strategy: the current strategy.
      data: what to train and validate on.
      stop: the request to save and stop.
      output: the folder that this process writes to, if it isn't the chief.
      workers: the processes of the run.
      schedule: the learning rate by step, instead of the configured one.

    Attributes:
      model: the model that is trained.
      trainer: runs its training steps.
      inference: runs it without training.
      data: what it is trained and validated on.
      steps_per_call: the number of training steps of one call of the trainer.
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
        schedule: Schedule | None = None,
    ):
        self.name = name
        self.model = trained.model
        self._config = config
        self._trained = trained
        self.steps_per_call = trained.steps_per_call
        self._strategy = strategy
        self.data = data
        self._stop = stop or StopRequest()
        self._output = output = output or workdir
        self._workers = workers or Workers(strategy)
        self._steps_per_epoch = input_pipeline.steps_per_epoch(
            data.num_examples, config.optimization.global_batch_size
        )
        self._schedule = schedule or optimizers.learning_rate_schedule(
            config.optimization,
            trained.options.learning_rate,
            trained.options.epochs,
            self._steps_per_epoch,
        )
        self.trainer = self._make_trainer()
        self.inference = Inference(
            trained.model,
            strategy,
            data.device_stage,
            xla=uses_xla(config.runtime.xla),
        )
        self._saved_at = time.monotonic()
        self._profiler = Profiler(
            config.runtime.profile_range, output / "tensorboard" / name
        )
        self._checkpoints = StageCheckpoints(
            workdir / "checkpoints" / name,
            trained.model,
            self.trainer.optimizer,
            strategy,
            output / "checkpoints" / name,
            self._workers,
        )

    def _make_trainer(self) -> Trainer:
        trained, config = self._trained, self._config
        with self._strategy.scope():
            optimizer = optimizers.make_optimizer(
                trained.options.optimizer,
                self._schedule,
                config.optimization,
                scale_loss=keras.config.dtype_policy().name == "mixed_float16",
                rate_scales=trained.rate_scales,
            )
        return Trainer(
            model=trained.model,
            strategy=self._strategy,
            global_batch_size=config.optimization.global_batch_size,
            optimizer=optimizer,
            label_smoothing=config.optimization.label_smoothing,
            xla=uses_xla(config.runtime.xla),
            xla_update=trained.xla_update and config.runtime.xla != "off",
            deterministic=config.runtime.deterministic,
            training_model=trained.training_model,
            device_stage=self.data.device_stage,
        )

    def run(self) -> StageResult:
        """Trains from the newest checkpoint to the last epoch.

        The model then has the weights of the epoch with the best validation,
        or of the last epoch if the stage isn't validated.

        Raises:
          UserError: the loss is not finite; the last checkpoint is kept.
          Preempted: the process was asked to stop, and has saved.
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
        if done < self._trained.options.epochs:
            batches = iter(self._train_batches(done, step))
            for epoch in range(done, self._trained.options.epochs):
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
        """Runs the first steps of the stage one by one, and saves nothing.

        Args:
          num_steps: the number of steps.

        Yields:
          The learning rate of a step, and the mean training loss of its batch
          before the update, nats. The rate repeats where loss scaling skipped
          a step.
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
        # Before the checkpoint: if the process dies in between, the epoch runs
        # again and its old line is dropped. A missing line would never return.
        writer.write(line)
        self._checkpoints.save(line["seconds"])
        self._saved_at = time.monotonic()
        terminal.say(
            f"{self.name} epoch {epoch + 1}/{self._trained.options.epochs}: "
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
        """Validates the current weights, and keeps them if they are the best.

        Without validation, it keeps those of the last epoch.

        Returns:
          The loss and the accuracy, or None for both.
        """
        last = epoch + 1 == self._trained.options.epochs
        if self.data.make_validation is None:
            if last:
                self._measure_trained_batch_norm()
                self._checkpoints.keep()
            return None, None
        self._measure_trained_batch_norm()
        loss, accuracy = self.inference.loss_and_accuracy(
            self._validation_batches, self._stop.alive
        )
        self._checkpoints.save_if_best(accuracy, loss)
        return loss, accuracy

    def _train_epoch(
        self, epoch: int, batches: Iterator
    ) -> tuple[TrainTotals, float]:
        """Trains to the end of an epoch; returns its sums and its seconds."""
        # They are not zero if a run resumes within the epoch.
        totals = TrainTotals(*tf.unstack(self._checkpoints.sums))
        step = checked = int(self._checkpoints.step.numpy())
        title = f"{self.name} epoch {epoch + 1}/{self._trained.options.epochs}"
        batch_size = self.trainer.global_batch_size
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
                rate = step * batch_size / (time.perf_counter() - start)
                progress.advance(count, f"{rate:.1f} images/s")
                if due:
                    seconds = time.perf_counter() - start
                    self._save_within_epoch(epoch, step, totals, seconds)
        return totals, time.perf_counter() - start

    def _save_is_due(self) -> bool:
        """Whether it is time to save, or any worker was asked to stop."""
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
            f"--{self._trained.options.method}_learning_rate"
            + (
                f", in another --workdir; epoch {epoch}'s checkpoint is kept"
                if epoch
                else ""
            )
        )

    def _measure_frozen_batch_norm(self) -> None:
        """Measures the statistics of frozen batch-norm before the first step.

        Random weights have none that could be kept.
        """
        if self.data.make_statistics and not self._trained_batch_norm:
            batch_norm.measure_statistics(
                self.model, self.data.statistics_batches()
            )

    def _measure_trained_batch_norm(self) -> None:
        """Measures the statistics of trained batch-norm after an epoch.

        In training it uses the statistics of each batch; validation and the
        saved model use those of the data.
        """
        if self.data.make_statistics and self._trained_batch_norm:
            self._statistics_measurer.run(self.data.statistics_batches())

    @functools.cached_property
    def _statistics_measurer(self) -> batch_norm.StatisticsMeasurer:
        return batch_norm.StatisticsMeasurer(
            self.model, self._trained_batch_norm
        )

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
        # Made once: each new dataset would be traced and compiled again.
        return self._strategy.distribute_datasets_from_function(
            self.data.make_validation
        )
