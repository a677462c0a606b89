"""`--phase=predict`: classifies image files; needs no data set."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import numpy as np
import tensorflow as tf

from flowers17_tfdata import files, terminal, trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input.examples import Examples, FileImages
from flowers17_tfdata.phases.predict import formats, image_files
from flowers17_tfdata.phases.predict.formats import Prediction
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.session import open_devices
from flowers17_tfdata.trained_model import TrainedModel
from flowers17_tfdata.training import cluster


def predict(config: Config) -> None:
    """Writes the predictions for `--images`.

    Raises:
      UserError: there is no model, or an image can't be read; the readable
        images are predicted first.
    """
    paths = image_files.find_images(config.predict.images, sys.stdin)
    resolver = cluster.find_cluster()
    if resolver is not None and cluster.place(resolver)[1]:
        terminal.say("predict: only worker 0 predicts")
        return
    # Worker 0 must not wait for the cluster's other workers.
    runtime = dataclasses.replace(
        config.runtime, strategy="default", num_virtual_devices=0
    )
    strategy, _, _ = open_devices(dataclasses.replace(config, runtime=runtime))
    trained = trained_model.load_model(config)
    class_names = trained_model.read_class_names(config, trained)
    top_k = min(config.predict.top_k, len(class_names))
    unreadable = []
    with _open_output(config) as stream, _progress(config, len(paths)) as bar:
        write = formats.make_writer(
            config.predict.format,
            stream,
            top_k=top_k,
            files=paths,
            class_names=class_names,
        )
        for file, probabilities, error in _predict_files(
            config, strategy, trained, paths
        ):
            order = np.argsort(-probabilities, kind="stable")[:top_k]
            top = [(class_names[k], float(probabilities[k])) for k in order]
            prediction = Prediction(file, () if error else tuple(top), error)
            write(prediction)
            if error:
                unreadable.append(prediction)
            if bar:
                bar.advance()
    _report_unreadable(unreadable, len(paths))


def _predict_files(
    config: Config,
    strategy: tf.distribute.Strategy,
    trained: TrainedModel,
    paths: Sequence[str],
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yields `(path, probabilities, error)` in order.

    The probabilities are float32 `[num_classes]`; the error says why the image
    can't be read, or is ''.
    """
    images = FileImages(paths, trained.image_size)
    labels = np.zeros(len(paths), np.int64)
    batches = trained_model.stream_logits(
        config,
        strategy,
        trained,
        Examples(images, labels),
        config.evaluation.tta,
    )
    rows = itertools.chain.from_iterable(map(softmax, batches))
    for position, (path, row) in enumerate(zip(paths, rows, strict=True)):
        yield path, row, images.errors.get(position, "")


def _progress(
    config: Config, num_images: int
) -> contextlib.AbstractContextManager[terminal.EpochProgress | None]:
    """Returns the progress bar; None: rows on the terminal show progress."""
    if not config.predict.output and sys.stdout.isatty():
        return contextlib.nullcontext()
    return terminal.EpochProgress("predict", num_images)


@contextlib.contextmanager
def _open_output(config: Config) -> Iterator[TextIO]:
    """Yields standard output, or `--output`, written whole or not at all."""
    if not config.predict.output:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = pathlib.Path(config.predict.output).expanduser()
    with (
        files.whole_file(path, f"--output {path}") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as stream,
    ):
        yield stream
    terminal.say(f"predictions written to {path}")


def _report_unreadable(unreadable: list[Prediction], num_images: int) -> None:
    for prediction in unreadable:
        terminal.say(
            f"can't be read: {one_line(prediction.file, 500)}: "
            f"{prediction.error}",
            file=prediction.file,
            error=prediction.error,
        )
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {num_images} images can't be read, first "
            f"{unreadable[0].file} ({unreadable[0].error})"
        )
