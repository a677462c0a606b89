"""Compares every exported format with the trained model on one split."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flowers17_tfdata import terminal
from flowers17_tfdata.data import decode, image_formats
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.phases.export.network import Answers

BATCH = 32
_LATENCY_RUNS = 20
_BATCH_RUNS = 3

# The largest difference allowed between a probability and the float32 Keras
# model's, for formats that keep the weights. Kernels may sum in another order.
_MAX_DIFFERENCE = {"saved_model": 1e-4, "keras": 1e-4, "onnx": 1e-3}
# The least share of the split with the same most likely class, and with the
# same `unknown` and `classes_at_95`, for formats that round the weights.
_MIN_AGREEMENT = {"tflite_float16": 0.99, "tflite_int8": 0.95}
_MIN_TRUST_AGREEMENT = {"tflite_float16": 0.98, "tflite_int8": 0.85}

# The columns of the printed table: heading, key in the row, number format.
_COLUMNS = (
    ("MB", "megabytes", ".1f"),
    ("acc.", "accuracy", ".1%"),
    ("differ", "max_difference", ".1e"),
    ("same", "top_1_agreement", ".1%"),
    ("trust", "trust_agreement", ".1%"),
    ("ms", "latency_ms", ".1f"),
    ("img/s", "images_per_sec", ".1f"),
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported format, and how to run it.

    Attributes:
      name: the format.
      path: the format's file or folder.
      classify: maps uint8 images `[n, size, size, 3]`, or with `takes_files` a
        list of `n` encoded files, to what `trust.answer` returns.
      takes_files: whether the format decodes and resizes.
      takes_batches: whether it runs several images at once.
    """

    name: str
    path: pathlib.Path
    classify: Callable[[Any], Answers]
    takes_files: bool = False
    takes_batches: bool = True


@dataclasses.dataclass(frozen=True)
class Split:
    """The split that the formats are compared on.

    Attributes:
      source: the data set.
      name: the split's name.
      examples: the split, decoded at the model's image size.
    """

    source: Source
    name: str
    examples: Examples

    def batches(self, encoded: bool) -> Iterator[Any]:
        """Yields the split in batches of `BATCH`, as `Exported` takes them."""
        if encoded:
            for batch in self.source.read(self.name).batch(BATCH):
                yield [_served(data) for data in batch["image"].numpy()]
            return
        indices = np.arange(self.examples.num_examples)
        for start in range(0, len(indices), BATCH):
            yield self.examples.images.read(indices[start : start + BATCH])


def _served(encoded: bytes) -> bytes:
    """Returns a file that an exported graph decodes without a warning.

    It turns a photograph itself, but reads no formats other than these.
    """
    picture = decode.read(encoded)
    kind = image_formats.recognize(encoded)
    if picture.damage or kind not in ("JPEG", "PNG"):
        return picture.to_file()
    return encoded


def classify_split(split: Split, exported: Exported) -> Answers:
    """Runs a format on the whole split; returns answers in its order."""
    batches = []
    num_examples = split.examples.num_examples
    with terminal.EpochProgress(exported.name, num_examples) as progress:
        for batch in split.batches(exported.takes_files):
            batches.append(exported.classify(batch))
            progress.advance(len(batch))
    return {
        name: np.concatenate([answers[name] for answers in batches])
        for name in batches[0]
    }


def compare(
    name: str,
    path: pathlib.Path,
    answers: Answers,
    *,
    labels: np.ndarray,
    reference: Answers,
    trained: Answers,
) -> dict[str, Any]:
    """Returns a format's row of `parity.json`, without its speed.

    Args:
      name: the format.
      path: the format's file or folder.
      answers: the format's answers to n images.
      labels: int64 `[n]`, the true classes.
      reference: the float32 Keras model's answers: a difference to them is due
        to the format alone.
      trained: the trained model's answers, in its own precision.

    Returns:
      `format`, `file`, `megabytes` (10^6 bytes) and `accuracy`;
      `max_difference` and `max_difference_to_trained` between probabilities;
      `top_1_agreement` and `top_1_agreement_with_trained`, the share of images
      with the same most likely class; `trust_agreement`, the share of images
      with the same `unknown` and the same `classes_at_95` as the reference, and
      `max_score_difference` between their unknown scores, both None if the
      model has neither.
    """
    probabilities = answers["probabilities"]
    predicted = probabilities.argmax(axis=1)

    def difference(other: Answers) -> float:
        return float(np.abs(probabilities - other["probabilities"]).max())

    def agreement(other: Answers) -> float:
        same = predicted == other["probabilities"].argmax(axis=1)
        return float(same.mean())

    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return {
        "format": name,
        "file": path.name,
        "megabytes": round(size / 1e6, 2),
        "accuracy": float((predicted == labels).mean()),
        "max_difference": difference(reference),
        "max_difference_to_trained": difference(trained),
        "top_1_agreement": agreement(reference),
        "top_1_agreement_with_trained": agreement(trained),
        **_compare_trust(answers, reference),
    }


def _compare_trust(
    answers: Answers, reference: Answers
) -> dict[str, float | None]:
    if "unknown" not in reference:
        return {"trust_agreement": None, "max_score_difference": None}
    same = answers["unknown"] == reference["unknown"]
    sets = answers["classes_at_95"] == reference["classes_at_95"]
    scores = answers["unknown_score"] - reference["unknown_score"]
    return {
        "trust_agreement": float((same & sets.all(axis=1)).mean()),
        "max_score_difference": float(np.abs(scores).max()),
    }


def measure_speed(split: Split, exported: Exported) -> dict[str, float | None]:
    """Times a format on the split's first batch.

    Returns:
      `latency_ms`, the median for one image; `images_per_sec` in batches of
      `BATCH`, or None if the format takes one image at a time.
    """
    batch = next(split.batches(exported.takes_files))
    rate = None
    if exported.takes_batches:
        rate = len(batch) / _median_secs(exported, batch, _BATCH_RUNS)
    latency = _median_secs(exported, batch[:1], _LATENCY_RUNS)
    return {"latency_ms": 1000 * latency, "images_per_sec": rate}


def _median_secs(exported: Exported, batch: Any, num_runs: int) -> float:
    # The first run is a warm-up.
    seconds = timeit.repeat(
        lambda: exported.classify(batch), number=1, repeat=num_runs + 1
    )
    return statistics.median(seconds[1:])


def check(row: dict[str, Any], split_name: str) -> None:
    """Checks a row against the bounds of its format.

    Prints a warning if a format that rounds the weights differs too much.

    Raises:
      UserError: a format that keeps the weights differs too much.
    """
    name = row["format"]
    most = _MAX_DIFFERENCE.get(name)
    # Negated, so that NaN fails.
    if most is not None and not row["max_difference"] <= most:
        raise UserError(
            f"{name} differs from the Keras model by "
            f"{row['max_difference']:.2g} in a probability on {split_name}, "
            f"more than {most:g}: nothing was exported; leave it out of "
            "--export_formats"
        )
    if row["top_1_agreement"] < (least := _MIN_AGREEMENT.get(name, 0.0)):
        terminal.say(
            f"warning: {name} predicts the Keras model's class for "
            f"{row['top_1_agreement']:.1%} of {split_name}, less than "
            f"{least:.0%}: measure it before you use it"
        )
    share = row["trust_agreement"]
    least = _MIN_TRUST_AGREEMENT.get(name, 0.0)
    if share is not None and share < least:
        terminal.say(
            f"warning: {name} has the Keras model's unknown and classes_at_95 "
            f"for {share:.1%} of {split_name}, less than {least:.0%}: measure "
            "it before you use it"
        )


def show(rows: list[dict[str, Any]], split_name: str) -> None:
    """Prints the table of all formats, narrow enough for 80 columns."""

    def text(value: float | None, number_format: str) -> str:
        return "-" if value is None else format(value, number_format)

    columns = ["format", *(heading for heading, _, _ in _COLUMNS)]
    cells = [
        [row["format"], *(text(row[key], form) for _, key, form in _COLUMNS)]
        for row in rows
    ]
    terminal.show_table(f"{split_name} split", columns, cells)
    terminal.say(
        "differ: largest difference of a probability from the Keras model in "
        "float32; same: images with its most likely class; trust: with its "
        "unknown and classes_at_95; ms: one image; img/s: in batches of "
        f"{BATCH}"
    )
