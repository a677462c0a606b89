"""Predictions as an aligned table, as JSON Lines, or as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from flowers17_tfdata.predictor import Prediction

# A longer name shifts only its own row.
_WIDEST_NAME = 60


def make_writer(
    name: str,
    stream: TextIO,
    *,
    top_k: int,
    files: Sequence[str],
    class_names: Sequence[str],
) -> Callable[[Prediction], Any]:
    """Writes the header, if there is one, and returns a writer of rows.

    Args:
      name: table, json or csv.
      stream: the stream to write to.
      top_k: the maximum number of classes per image.
      files: the images' paths, which decide the width of the table's first
        column.
      class_names: the names of all classes, which decide the width of the
        others.
    """
    if name == "json":
        return lambda row: print(_json_line(row), file=stream)
    if name == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        header = ["label", "probability"]
        for k in range(2, top_k + 1):
            header += [f"label_{k}", f"probability_{k}"]
        header += ["unknown", "unknown_score", "classes_at_95"]
        writer.writerow(["file", *header, "error"])
        return lambda row: writer.writerow(_cells(row, top_k))
    file_width = min(_WIDEST_NAME, max(map(len, files), default=0))
    class_width = max(map(len, class_names))
    return lambda row: print(
        _table_line(row, file_width, class_width), file=stream
    )


def _json_line(prediction: Prediction) -> str:
    top = [
        {"label": label, "probability": round(probability, 6)}
        for label, probability in prediction.classes
    ]
    row: dict[str, Any] = {"error": prediction.error}
    if top:
        row = {**top[0], "top": top}
    if prediction.unknown is not None:
        row |= {
            "unknown": prediction.unknown,
            "unknown_score": round(prediction.unknown_score or 0.0, 4),
            "classes_at_95": prediction.classes_at_95,
        }
    if prediction.damage:
        row["damage"] = prediction.damage
    # ASCII: the bytes of a name that isn't UTF-8 become escapes.
    return json.dumps({"file": prediction.file, **row})


def _cells(prediction: Prediction, top_k: int) -> list[str]:
    cells = [x for label, p in prediction.classes for x in (label, f"{p:.6f}")]
    cells += [""] * (2 * top_k - len(cells))
    trust = ["", "", ""]
    if prediction.unknown is not None:
        trust = [
            str(prediction.unknown).lower(),
            f"{prediction.unknown_score:.4f}",
            "|".join(prediction.classes_at_95 or ()),
        ]
    return [_printable(prediction.file), *cells, *trust, prediction.error]


def _table_line(
    prediction: Prediction, file_width: int, class_width: int
) -> str:
    text = "  ".join(
        f"{label:{class_width}} {probability:6.1%}"
        for label, probability in prediction.classes
    )
    if prediction.unknown:
        text += "  unknown"
    if prediction.error:
        text = f"can't be read: {prediction.error}"
    return f"{_printable(prediction.file):{file_width}}  {text}"


def _printable(name: str) -> str:
    """Returns a file name in which bytes that aren't UTF-8 are escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
