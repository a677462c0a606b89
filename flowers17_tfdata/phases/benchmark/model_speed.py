"""How fast the network is: evaluation, training steps, fine-tuning."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.models import classifier, saved_models
from flowers17_tfdata.phases import train_models, train_stages
from flowers17_tfdata.phases.benchmark import ceilings, measurement
from flowers17_tfdata.phases.benchmark.input_speed import drain
from flowers17_tfdata.phases.benchmark.measurement import Row
from flowers17_tfdata.session import TRAINING_SPLITS, Session
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.loop import Stage

_FASTER_MODEL = "--precision, --image_size, --backbone"
_FEWER_LAYERS = "--unfreeze_from, " + _FASTER_MODEL


def make_fine_tuning(
    session: Session, examples: Examples, folder: pathlib.Path
) -> Callable[[str], Stage]:
    """Returns a function that opens the fine-tune stage as its phase does.

    The weights are random, since speed does not depend on them.

    Args:
      session: the open run.
      examples: the train split.
      folder: takes the model that fine-tuning starts from.

    Returns:
      A function of `--unfreeze_from`.
    """
    config = session.config

    def with_model(**options) -> Session:
        model = dataclasses.replace(config.model, **options)
        changed = dataclasses.replace(config, model=model)
        return dataclasses.replace(
            session, config=changed, workdir=folder, output=folder
        )

    path = folder / "initial.keras"
    initial = train_models.build_stage_model(
        with_model(weights="none"), "transfer"
    )
    saved_models.save_classifier(initial.model, path, {})
    # Higher rates would take as long, but the weights may become NaN.
    schedule = optimizers.learning_rate_schedule(
        config.optimization, 1e-9, 1000, 1000
    )

    splits = dict.fromkeys(TRAINING_SPLITS, examples)

    def open_stage(unfreeze_from: str) -> Stage:
        # With pretrained weights, frozen batch-norm is folded.
        pretrained = with_model(
            weights="imagenet", init_from=str(path), unfreeze_from=unfreeze_from
        )
        return train_stages.open_stage(pretrained, "finetune", schedule, splits)

    return open_stage


def model_rows(session: Session, whole: Stage, partly: Stage) -> list[Row]:
    """Returns the rows of the network.

    Args:
      session: the open run.
      whole: the stage that trains all layers.
      partly: the stage of `--unfreeze_from`.
    """
    config = session.config
    matmul = ceilings.make_matmul(session.compute_dtype)
    waits: dict[str, float] = {}
    # Logical devices share one processor.
    split = config.runtime.num_virtual_devices
    devices = 1 if split else session.strategy.num_replicas_in_sync

    def ceiling(name: str, stage: Stage, size: int, training: bool) -> Row:
        backbone = classifier.get_backbone(stage.model)
        flop = ceilings.count_flop(backbone, size, training=training)
        return Row(f"ceiling/{name}", lambda: matmul() * devices / flop)

    size, train_size = config.input.image_size, config.input.train_image_size
    return [
        ceiling("matmul_forward", whole, size, training=False),
        ceiling("matmul_step_all", whole, train_size, training=True),
        ceiling("matmul_step", partly, train_size, training=True),
        Row(
            "model/forward",
            _make_forward(whole),
            "model/keras_predict",
            "ceiling/matmul_forward",
            _FASTER_MODEL,
        ),
        Row(
            "model/step_all",
            make_steps(whole),
            "model/keras_fit",
            "ceiling/matmul_step_all",
            _FEWER_LAYERS,
        ),
        Row(
            "model/step",
            make_steps(partly),
            "model/keras_fit",
            "ceiling/matmul_step",
            _FEWER_LAYERS,
        ),
        Row(
            "train/finetune",
            make_steps(partly, waits),
            "model/keras_fit",
            "model/step",
            more=waits,
        ),
    ]


def _make_forward(stage: Stage) -> Callable[[], float]:
    """Measures evaluation steps on one batch of images."""
    trainer, make_validation = stage.trainer, stage.data.make_validation
    assert make_validation is not None
    batch = next(
        iter(
            trainer.strategy.distribute_datasets_from_function(
                lambda context: make_validation(input_context=context)
            )
        )
    )

    def call() -> int:
        stage.inference.loss_and_accuracy([batch])
        return trainer.global_batch_size

    return lambda: measurement.rate(call)


def train_batches(stage: Stage, *, always_ready: bool) -> Iterator:
    """Returns an iterator over a stage's training batches.

    Args:
      stage: the stage.
      always_ready: repeat the first batch, which is then always ready.
    """

    def make_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = stage.data.make_train(input_context=context)
        return batches.take(1).cache().repeat() if always_ready else batches

    distribute = stage.trainer.strategy.distribute_datasets_from_function
    return iter(distribute(make_dataset))


def make_steps(
    stage: Stage, waits: dict[str, float] | None = None
) -> Callable[[], float]:
    """Measures training steps, as many at once as the stage takes.

    Args:
      stage: the stage whose steps to take.
      waits: a dict to which each measurement writes `data_wait_fraction`, the
        share of its time that the steps waited for their batches. None: all
        steps train on one batch, which is always ready.

    Returns:
      A function that takes a measurement, images/s.
    """

    trainer, steps = stage.trainer, stage.steps_per_call
    batches = train_batches(stage, always_ready=waits is None)
    waited, seconds = [], []

    def call() -> int:
        start = time.perf_counter()
        totals = trainer.train_steps(batches, tf.constant(steps))
        waited.append(float(totals.wait_secs))
        seconds.append(time.perf_counter() - start)
        return steps * trainer.global_batch_size

    def run() -> float:
        drain(batches)
        waited.clear()
        seconds.clear()
        images_per_sec = measurement.rate(call)
        if waits is not None:
            waits["data_wait_fraction"] = sum(waited) / sum(seconds)
        return images_per_sec

    return run
