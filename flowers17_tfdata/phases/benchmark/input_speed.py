"""How fast the training input is: the pipeline, and the work in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.phases import train_data
from flowers17_tfdata.phases.benchmark import measurement
from flowers17_tfdata.phases.benchmark.measurement import Row
from flowers17_tfdata.session import Session


def input_rows(session: Session, train: Mapping[str, Examples]) -> list[Row]:
    """Returns the rows of the input pipeline.

    Args:
      session: the open run.
      train: the train split as each `--cache`, `memory` and `none`, keeps it.
    """
    decoded, encoded = train["memory"], train["none"]
    return [
        Row("input/augment", _make_image_work(session, decoded)),
        Row("input/decode", _make_image_work(session, encoded)),
        Row(
            "input/cached",
            _make_pipeline(session, decoded),
            relative_to="input/keras_layers",
            ceiling="input/augment",
            moved_by="--augment_on=device, --train_scale",
        ),
        Row(
            "input/uncached",
            _make_pipeline(session, encoded),
            relative_to="input/keras_layers",
            ceiling="input/decode",
            moved_by="--cache=memory",
        ),
    ]


def drain(batches: Iterator) -> None:
    """Takes as many batches as the buffers may hold already."""
    for _ in range(2 * machine.num_cores() + 4):
        next(batches)


def _make_pipeline(session: Session, examples: Examples) -> Callable[[], float]:
    """Measures the host's part of the training pipeline on its own.

    Where the device augments, that part ends with uint8 images.
    """
    splits = train_data.Splits({}, examples, None)
    data = train_data.image_data(session, splits, "finetune")
    dataset = data.make_train()

    def run() -> float:
        # A new iterator each time: an old one would go on filling its buffer
        # while the next row is measured.
        batches = iter(dataset)
        drain(batches)
        return measurement.rate(lambda: len(next(batches).labels))

    return run


def _make_image_work(
    session: Session, examples: Examples
) -> Callable[[], float]:
    """Measures the pipeline's work on single images, on all cores.

    That is reading (decoding, unless they are cached) and, on the host,
    augmenting them: no tf.data, no normalization.
    """
    config, cores = session.config, machine.num_cores()
    plan = input_pipeline.make_epoch_plan(
        examples.num_examples,
        config.input,
        global_batch_size=config.optimization.global_batch_size,
        seed=config.runtime.seed,
        input_context=None,
    )
    indices, _, transforms = plan(tf.constant(0, tf.int64))
    epoch = zip(indices.numpy(), transforms.numpy(), strict=True)
    batches = list(itertools.islice(itertools.cycle(epoch), cores))
    resamples = config.input.augment_on == "host" and transforms.shape[-1] > 0
    size = config.input.train_image_size

    def work(batch) -> int:
        indices, transforms = batch
        if resamples:
            return len(examples.images.resample(indices, transforms, size))
        return len(examples.images.read(indices))

    pool = ThreadPoolExecutor(cores)
    return lambda: measurement.rate(lambda: sum(pool.map(work, batches)))
