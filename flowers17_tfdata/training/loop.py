"""The epochs of one stage: train, validate, record, save."""

from __future__ import annotations

import functools
import math
import pathlib
import time
from collections.abc import Iterator

import keras
import tensorflow as tf

from flowers17_tfdata import terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, counted
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.training import metrics, optimizers
from flowers17_tfdata.training.checkpoints import StageCheckpoints
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.inference import Inference
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.profiler import Profiler
from flowers17_tfdata.training.stage import StageData, StageResult, Trainable
from flowers17_tfdata.training.trainer import Trainer, TrainTotals
from flowers17_tfdata.training.workers import Workers

# Reading a value waits for the device. At every step that would keep Python
# from running ahead; once per epoch would train on NaN for minutes.
_STEPS_BETWEEN_CHECKS = 10


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
        schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
    ):
        self.name = name
        self.model = trained.model
        self._config = config
        self._trained = trained
        self._epochs = trained.options.epochs
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
            trained.restarts,
        )
        self.trainer = self._make_trainer()
        self.inference = Inference(trained.model, strategy, data.device_stage)
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
        scales = trained.rate_scales
        with self._strategy.scope():
            weights = FlatWeights(trained.model)
            optimizer = optimizers.make_optimizer(
                trained.options.optimizer,
                self._schedule,
                config.optimization,
                scale_loss=keras.config.dtype_policy().name == "mixed_float16",
                rate_scales=weights.flatten(scales) if scales else None,
            )
        return Trainer(
            weights=weights,
            strategy=self._strategy,
            global_batch_size=config.optimization.global_batch_size,
            optimizer=optimizer,
            label_smoothing=config.optimization.label_smoothing,
            xla=config.runtime.xla,
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
            terminal.say(f"{self.name}: {self._resumption(done, step)}")
            self.trainer.weights.load()
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
        kept = self._checkpoints
        accuracy = loss = None
        if self.data.make_validation:
            accuracy = float(kept.best_accuracy.numpy())
            loss = float(kept.best_loss.numpy())
        seconds = float(kept.seconds.numpy())
        return StageResult(
            int(kept.best_epoch.numpy()), accuracy, loss, seconds
        )

    def _resumption(self, done: int, step: int) -> str:
        if not step and done in self._trained.restarts:
            return (
                f"ended after {counted(done, 'epoch')}; going on to "
                f"{self._epochs} with a new schedule"
            )
        return f"resuming after epoch {done}" + (
            f" and {counted(step, 'step')}" if step else ""
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
        self, epoch: int, batches: Iterator, writer: metrics.MetricsWriter
    ) -> None:
        totals, train_secs = self._train_epoch(epoch, batches)
        start = time.perf_counter()
        loss, accuracy = self._validate(epoch)
        examples = float(totals.examples)
        step = (epoch + 1) * self._steps_per_epoch
        seconds = train_secs + time.perf_counter() - start
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
            "seconds": seconds,
        }
        # Before the checkpoint: if the process dies in between, the epoch runs
        # again and its old line is dropped. A missing line would never return.
        writer.write(line)
        self._checkpoints.save(seconds)
        self._saved_at = time.monotonic()
        validated = ""
        if loss is not None:
            validated = f"validation loss {loss:.3f} accuracy {accuracy:.3f}, "
        terminal.say(
            f"{self.name} epoch {epoch + 1}/{self._epochs}: "
            f"train loss {line['train_loss']:.3f} "
            f"accuracy {line['train_accuracy']:.3f}, {validated}"
            f"{line['images_per_sec']:.1f} images/s "
            f"(wait {line['data_wait_fraction']:.1%}), {seconds:.0f} s",
            **line,
        )

    def _validate(self, epoch: int) -> tuple[float | None, float | None]:
        """Validates the current weights, and keeps them if they are the best.

        Without validation, it keeps those of the last epoch.

        Returns:
          The loss and the accuracy, or None for both.
        """
        if self.data.make_validation is None:
            if epoch + 1 == self._epochs:
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
        title = f"{self.name} epoch {epoch + 1}/{self._epochs}"
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
                    self.trainer.weights.store()
                    seconds = time.perf_counter() - start
                    self._checkpoints.save_within_epoch(step, totals, seconds)
                    self._saved_at = time.monotonic()
                    self._stop.check(f"{title} is saved, after step {step}")
        self.trainer.weights.store()
        return totals, time.perf_counter() - start

    def _save_is_due(self) -> bool:
        """Whether it is time to save, or any worker was asked to stop."""
        every = self._config.runtime.checkpoint_every_secs
        late = every and time.monotonic() - self._saved_at >= every
        return self._workers.any(bool(late or self._stop.requested))

    def _check_finite(
        self, totals: TrainTotals, epoch: int, first: int, step: int
    ) -> None:
        if math.isfinite(float(totals.loss)):
            return
        kept = ""
        if epoch:
            kept = f", in another --workdir; epoch {epoch}'s checkpoint is kept"
        raise UserError(
            f"the training loss became {float(totals.loss)} in {self.name} "
            f"epoch {epoch + 1}, step {first} to {step}: try a lower "
            f"--{self._trained.options.method}_learning_rate{kept}"
        )

    def _measure_frozen_batch_norm(self) -> None:
        """Measures the statistics of frozen batch-norm before the first step.

        Random weights have none that could be kept.
        """
        if self.data.statistics is not None and not self._trained_batch_norm:
            batch_norm.measure_statistics(
                self.model, self.data.statistics_batches()
            )

    def _measure_trained_batch_norm(self) -> None:
        """Measures the statistics of trained batch-norm after an epoch.

        In training it uses the statistics of each batch; validation and the
        saved model use those of the data.
        """
        if self.data.statistics is not None and self._trained_batch_norm:
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
            lambda context: self.data.make_train(
                initial_epoch=initial_epoch,
                initial_step=initial_step,
                input_context=context,
            )
        )

    @functools.cached_property
    def _validation_batches(self):
        # Made once: each new dataset would be traced and compiled again.
        return self._strategy.distribute_datasets_from_function(
            lambda context: self.data.make_validation(input_context=context)
        )
