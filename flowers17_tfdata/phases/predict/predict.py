"""`--phase=predict`: classifies image files; needs no data set."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from flowers17_tfdata import files, predictor, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import UserError, counted, one_line
from flowers17_tfdata.phases.predict import formats, image_files
from flowers17_tfdata.predictor import Prediction


def predict(config: Config) -> None:
    """Classifies `--images` and writes the predictions.

    Raises:
      UserError: there is no model, or an image can't be read; the readable
        images are predicted first.
    """
    paths = image_files.find_images(config.predict.images, sys.stdin)
    classifier = predictor.open_predictor(config)
    top_k = min(config.predict.top_k, len(classifier.class_names))
    noted = []
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
            class_names=classifier.class_names,
        )
        for prediction in classifier.stream(paths, top_k):
            write(prediction)
            progress.advance()
            if prediction.error or prediction.damage:
                noted.append(prediction)
    _report(noted, len(paths))


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


def _report(noted: Sequence[Prediction], num_files: int) -> None:
    """Names the damaged images, and the first that can't be read."""
    for prediction in noted:
        file, damage = prediction.file, prediction.damage
        if damage:
            name = one_line(file, 500)
            text = f"damaged, but classified: {name}: {damage}"
            terminal.say(text, file=file, damage=damage)
    unreadable = [prediction.file for prediction in noted if prediction.error]
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {counted(num_files, 'file')} can't be "
            "read (each row says why), first "
            f"{one_line(unreadable[0], 500)}"
        )
