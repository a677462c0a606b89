"""`--phase=predict`: classifies image files; needs no data set."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from flowers17_tfdata import files, terminal, trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, counted, one_line
from flowers17_tfdata.input.examples import Examples, FileImages
from flowers17_tfdata.phases.predict import formats, image_files
from flowers17_tfdata.phases.predict.formats import Prediction
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.session import open_devices


def predict(config: Config) -> None:
    """Classifies `--images` and writes the predictions.

    Raises:
      UserError: there is no model, or an image can't be read; the readable
        images are predicted first.
    """
    paths = image_files.find_images(config.predict.images, sys.stdin)
    # This process is worker 0. It must not wait for the cluster's other
    # workers, which do nothing.
    runtime = dataclasses.replace(
        config.runtime, strategy="default", num_virtual_devices=0
    )
    strategy, _, _ = open_devices(dataclasses.replace(config, runtime=runtime))
    trained = trained_model.load_model(config)
    class_names = trained_model.read_class_names(config, trained)
    top_k = min(config.predict.top_k, len(class_names))
    images = FileImages(paths, trained.image_size)
    batches = trained_model.stream_logits(
        config,
        strategy,
        trained,
        Examples(images, np.zeros(len(paths), np.int64)),
        config.evaluation.tta,
    )
    rows = itertools.chain.from_iterable(map(softmax, batches))
    progress = terminal.EpochProgress("predict", len(paths))
    # Rows on the terminal show the progress themselves.
    shows_rows = not config.predict.output and sys.stdout.isatty()
    with (
        _open_output(config) as stream,
        contextlib.nullcontext() if shows_rows else progress,
    ):
        write = formats.make_writer(
            config.predict.format,
            stream,
            top_k=top_k,
            files=paths,
            class_names=class_names,
        )
        for k, (path, row) in enumerate(zip(paths, rows, strict=True)):
            order = np.argsort(-row, kind="stable")[:top_k]
            top = tuple((class_names[c], float(row[c])) for c in order)
            error = images.errors.get(k, "")
            write(Prediction(path, () if error else top, error))
            progress.advance()
    if images.errors:
        raise UserError(
            f"{len(images.errors)} of {counted(len(paths), 'file')} can't be "
            "read (each row says why), first "
            f"{one_line(paths[min(images.errors)], 500)}"
        )


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
