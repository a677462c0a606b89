"""Predictions as lines: for people, as JSON, as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TextIO

# A name that is longer pushes its own row out of line, not all of them.
_WIDEST_NAME = 60


class Prediction(NamedTuple):
    """What is told of one image.

    Attributes:
      file: its path.
      classes: the `--top_k` likeliest names and their probabilities, the
        likeliest first.
      error: why it can't be read; '' if it can.
    """

    file: str
    classes: tuple[tuple[str, float], ...]
    error: str = ""


class Writer(Protocol):
    """Writes predictions one by one, as they come."""

    def write(self, prediction: Prediction) -> None: ...


def make_writer(
    name: str,
    stream: TextIO,
    *,
    top_k: int,
    files: Sequence[str],
    class_names: Sequence[str],
) -> Writer:
    """Returns the writer of `--format`, its head written.

    Args:
      name: table, json or csv.
      stream: to write to.
      top_k: classes an image, at most.
      files: the ones to come as far as they are known, for the table's width.
      class_names: likewise.
    """
    if name == "json":
        return _JsonWriter(stream)
    if name == "csv":
        return _CsvWriter(stream, top_k)
    return _TableWriter(stream, files, class_names)


class _JsonWriter:
    """An object a line (JSON Lines, https://jsonlines.org)."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, prediction: Prediction) -> None:
        row: dict[str, object] = {"file": prediction.file}
        if prediction.error:
            row["error"] = prediction.error
        else:
            top = [
                {"label": label, "probability": round(probability, 6)}
                for label, probability in prediction.classes
            ]
            row |= top[0] if top else {"label": None, "probability": None}
            row["top"] = top
        # ASCII: a name that is not UTF-8 keeps its bytes as escapes.
        print(json.dumps(row), file=self._stream)


class _CsvWriter:
    """A row an image: file, label, probability, label_2, ..., error."""

    def __init__(self, stream: TextIO, top_k: int):
        self._writer = csv.writer(stream, lineterminator="\n")
        self._top_k = top_k
        head = ["label", "probability"]
        for place in range(2, top_k + 1):
            head += [f"label_{place}", f"probability_{place}"]
        self._writer.writerow(["file", *head, "error"])

    def write(self, prediction: Prediction) -> None:
        cells: list[str] = []
        for label, probability in prediction.classes:
            cells += [label, f"{probability:.6f}"]
        cells += [""] * (2 * self._top_k - len(cells))
        name = _printable(prediction.file)
        self._writer.writerow([name, *cells, prediction.error])


class _TableWriter:
    """Columns for people, each row written when it is known."""

    def __init__(
        self, stream: TextIO, files: Sequence[str], class_names: Sequence[str]
    ):
        self._stream = stream
        self._file_width = min(
            _WIDEST_NAME, max(map(len, files), default=_WIDEST_NAME // 2)
        )
        self._class_width = max(map(len, class_names))

    def write(self, prediction: Prediction) -> None:
        cells = [
            f"{label:{self._class_width}} {probability:6.1%}"
            for label, probability in prediction.classes
        ]
        text = prediction.error and f"can't be read: {prediction.error}"
        text = text or "  ".join(cells)
        name = _printable(prediction.file)
        print(f"{name:{self._file_width}}  {text}", file=self._stream)


def _printable(name: str) -> str:
    """Returns a file's name with what is not UTF-8 in it as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
