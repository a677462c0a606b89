"""The phase `predict`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata import files, terminal, trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input import augmentation, input_pipeline
from flowers17_tfdata.phases.predict import formats, image_files, views
from flowers17_tfdata.phases.predict.formats import Prediction
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.session import open_devices
from flowers17_tfdata.trained_model import TrainedModel
from flowers17_tfdata.training import cluster

# Widths of the table are found from this many names.
_NAMES_LOOKED_AT = 10_000


def predict(config: Config) -> None:
    """Says what `--images` show; no data set is needed.

    Raises:
      UserError: there is no model, or an image can't be read; the others are
        told of before.
    """
    paths, count = image_files.find_images(config.predict.images, sys.stdin)
    resolver = cluster.find_cluster()
    if resolver is not None and cluster.place(resolver)[1]:
        terminal.say("predict: worker 0 does it alone")
        return
    # No cluster's environment must make this wait for other workers.
    runtime = dataclasses.replace(
        config.runtime, strategy="default", num_virtual_devices=0
    )
    open_devices(dataclasses.replace(config, runtime=runtime))
    trained = trained_model.load_model(config)
    class_names = trained_model.read_class_names(config, trained)
    known: list[str] = []
    if count is not None:
        paths = iter(known := list(paths))
    unreadable, total = [], 0
    with _open_output(config.predict.output) as stream:
        writer = formats.make_writer(
            config.predict.format,
            stream,
            top_k=min(config.predict.top_k, len(class_names)),
            files=known[:_NAMES_LOOKED_AT],
            class_names=class_names,
        )
        for prediction in _predictions(
            config, trained, class_names, paths, count
        ):
            writer.write(prediction)
            total += 1
            if prediction.error:
                unreadable.append(prediction)
    if unreadable:
        _tell_unreadable(unreadable, total)


def _tell_unreadable(unreadable: list[Prediction], total: int) -> None:
    for prediction in unreadable:
        terminal.say(
            f"can't be read: {one_line(prediction.file, 500)}: "
            f"{prediction.error}",
            file=prediction.file,
            error=prediction.error,
        )
    raise UserError(
        f"{len(unreadable)} of {total} images can't be read, first "
        f"{unreadable[0].file} ({unreadable[0].error})"
    )


def _predictions(
    config: Config,
    trained: TrainedModel,
    class_names: tuple[str, ...],
    paths: Iterator[str],
    count: int | None,
) -> Iterator[Prediction]:
    """Yields what the model says of each image, in order."""
    options = dataclasses.replace(config.input, image_size=trained.image_size)
    num_views = config.evaluation.tta
    transforms = augmentation.draw_views(options, num_views)
    size = max(1, config.optimization.global_batch_size // num_views)
    forward = make_forward(trained)
    batches = views.make_dataset(
        paths, options.image_size, transforms, batch_size=size
    )
    # Rows that scroll by show the progress themselves.
    shows_rows = not config.predict.output and sys.stdout.isatty()
    bar = contextlib.nullcontext()
    if not shows_rows:
        bar = terminal.EpochProgress("predict", count)
    with bar as progress:
        for files, pixels, errors in batches.as_numpy_iterator():
            probabilities = predict_views(forward, pixels, size)
            for file, error, row in zip(
                files, errors, probabilities, strict=True
            ):
                yield Prediction(
                    os.fsdecode(file),
                    () if error else _top(row, class_names, config),
                    error.decode(),
                )
            if progress:
                progress.advance(len(files))


def _top(
    probabilities: np.ndarray, class_names: tuple[str, ...], config: Config
) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities, kind="stable")[: config.predict.top_k]
    return tuple((class_names[k], float(probabilities[k])) for k in order)


def make_forward(
    trained: TrainedModel,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the model as a function of what evaluation decodes.

    From uint8 `[batch, image_size, image_size, 3]` in [0, 255] to float32
    logits `[batch, num_classes]`.
    """
    normalize = input_pipeline.make_normalize(
        trained.preprocess, keras.config.dtype_policy().compute_dtype
    )

    @tf.function
    def forward(images):
        return trained.model(normalize(images), training=False)

    return forward


def predict_views(
    forward: Callable[[tf.Tensor], tf.Tensor],
    pixels: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Returns each image's mean probabilities over its views.

    Args:
      forward: see `make_forward`.
      pixels: uint8 `[n, views, height, width, 3]`, n at most `batch_size`.
      batch_size: padded to, so that the network is traced once.

    Returns:
      float32 `[n, num_classes]`.
    """
    num_images, num_views = pixels.shape[:2]
    padding = [(0, batch_size - num_images)] + [(0, 0)] * 4
    images = np.pad(pixels, padding).reshape(-1, *pixels.shape[2:])
    probabilities = softmax(forward(tf.constant(images)).numpy())
    by_image = probabilities.reshape(batch_size, num_views, -1)
    return by_image.mean(axis=1)[:num_images]


@contextlib.contextmanager
def _open_output(name: str) -> Iterator[TextIO]:
    """Opens `--output`, which appears when it is whole, or standard output."""
    if not name:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = pathlib.Path(name).expanduser()
    with (
        files.whole_file(path, f"--output {path}") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as stream,
    ):
        yield stream
    terminal.say(f"predictions written to {path}")
