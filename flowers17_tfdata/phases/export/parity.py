"""What an exported file says of a split, beside what the trained model says."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flowers17_tfdata import terminal
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import Examples
from flowers17_tfdata.phases.export import folder

BATCH = 32
_LATENCY_RUNS = 20
_BATCH_RUNS = 3

# Largest difference of a probability to the float32 Keras model, for formats
# that hold the same numbers. Kernels may add up in another order.
_MOST_DIFFERENCE = {"saved_model": 1e-4, "keras": 1e-4, "onnx": 1e-3}
# Share of the split on which the likeliest class must stay the same, for
# formats that round the weights.
_LEAST_AGREEMENT = {"tflite_float16": 0.99, "tflite_int8": 0.95}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A format that was written, and how to run it.

    Attributes:
      name: of the format.
      path: of its file or folder.
      classify: from uint8 images `[n, size, size, 3]`, or with `takes_files`
        from a list of `n` encoded files, to probabilities `[n, classes]`.
      takes_files: it decodes and resizes by itself.
      takes_batches: it runs more than one image at once.
    """

    name: str
    path: pathlib.Path
    classify: Callable[[Any], np.ndarray]
    takes_files: bool = False
    takes_batches: bool = True


@dataclasses.dataclass(frozen=True)
class Split:
    """The split that the formats are compared on.

    Attributes:
      source: the data set.
      name: of the split.
      examples: it, decoded at the model's image size.
    """

    source: Source
    name: str
    examples: Examples

    def batches(self, encoded: bool) -> Iterator[Any]:
        """Yields the split in batches of `BATCH`, as `Exported` takes them."""
        if encoded:
            for batch in self.source.read(self.name).batch(BATCH):
                yield list(batch["image"].numpy())
            return
        num_examples = self.examples.num_examples
        for start in range(0, num_examples, BATCH):
            indices = np.arange(start, min(start + BATCH, num_examples))
            yield self.examples.images.read(indices)

    def num_batches(self) -> int:
        return -(-self.examples.num_examples // BATCH)


def classify_split(split: Split, exported: Exported) -> np.ndarray:
    """Runs a format over the whole split.

    Returns:
      float32 `[n, num_classes]`, in the split's order.
    """
    rows = []
    with terminal.EpochProgress(exported.name, split.num_batches()) as progress:
        for batch in split.batches(exported.takes_files):
            rows.append(exported.classify(batch))
            progress.advance()
    return np.concatenate(rows)


def compare(
    probabilities: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray,
    trained: np.ndarray,
) -> dict[str, float]:
    """Compares what a format says of a split with what it should say.

    Args:
      probabilities: of the format, float32 `[n, num_classes]`.
      labels: int64 `[n]`, the true classes.
      reference: likewise of the float32 Keras model: what differs is the
        format's doing.
      trained: likewise of the trained model in its own precision.

    Returns:
      `accuracy`; `max_difference` and `max_difference_to_trained` of a
      probability; `top_1_agreement` and `top_1_agreement_with_trained`, the
      share of images with the same likeliest class.
    """
    predicted = probabilities.argmax(axis=1)

    def agreement(other):
        return float((predicted == other.argmax(axis=1)).mean())

    def difference(other):
        return float(np.abs(probabilities - other).max())

    return {
        "accuracy": float((predicted == labels).mean()),
        "max_difference": difference(reference),
        "max_difference_to_trained": difference(trained),
        "top_1_agreement": agreement(reference),
        "top_1_agreement_with_trained": agreement(trained),
    }


def measure_speed(split: Split, exported: Exported) -> dict[str, float | None]:
    """Times a format on the split's first batch.

    Returns:
      `latency_ms`, the median of one image; `images_per_sec`, of a batch, or
      None where the format takes one image at a time.
    """
    batch = next(split.batches(exported.takes_files))
    latency = _median_secs(exported.classify, batch[:1], _LATENCY_RUNS)
    rate = None
    if exported.takes_batches:
        rate = len(batch) / _median_secs(exported.classify, batch, _BATCH_RUNS)
    return {"latency_ms": 1000 * latency, "images_per_sec": rate}


def _median_secs(function: Callable, argument: Any, num_runs: int) -> float:
    function(argument)
    seconds = []
    for _ in range(num_runs):
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure(
    split: Split,
    exported: Exported,
    reference: np.ndarray,
    trained: np.ndarray,
) -> dict[str, Any]:
    """Returns a format's row: `compare`, `measure_speed`, name and size."""
    probabilities = classify_split(split, exported)
    return {
        "format": exported.name,
        "file": exported.path.name,
        "megabytes": round(folder.size_megabytes(exported.path), 2),
        **compare(probabilities, split.examples.labels, reference, trained),
        **measure_speed(split, exported),
    }


def check(row: dict[str, Any], split_name: str) -> None:
    """Holds a row against the bounds of its format.

    Says so in one line where a format that rounds went astray.

    Raises:
      UserError: a format that should be exact isn't.
    """
    name = row["format"]
    most = _MOST_DIFFERENCE.get(name)
    # Negated, so that NaN fails.
    if most is not None and not row["max_difference"] <= most:
        raise UserError(
            f"{name} differs from the Keras model by "
            f"{row['max_difference']:.2g} in a probability on {split_name}, "
            f"more than {most:g}: nothing was exported; leave it out of "
            "--export_formats"
        )
    least = _LEAST_AGREEMENT.get(name)
    if least is not None and row["top_1_agreement"] < least:
        terminal.say(
            f"warning: {name} names the same class as the Keras model on "
            f"{row['top_1_agreement']:.1%} of {split_name}, less than "
            f"{least:.0%}: measure it before you use it"
        )


def show(rows: list[dict[str, Any]], split_name: str) -> None:
    """Prints the table of all formats, narrow enough for 80 columns."""

    def shown(row):
        rate, latency = row["images_per_sec"], row["latency_ms"]
        return [
            row["format"],
            f"{row['megabytes']:.1f}",
            f"{100 * row['accuracy']:.1f}",
            f"{row['max_difference']:.1e}",
            f"{row['max_difference_to_trained']:.1e}",
            f"{100 * row['top_1_agreement']:.1f}",
            "-" if latency is None else f"{latency:.1f}",
            "-" if rate is None else f"{rate:.1f}",
        ]

    columns = ["format", "MB", "acc. %", "float32", "trained", "same %"]
    columns += ["ms", "img/s"]
    terminal.show_table(
        f"{split_name} split", columns, [shown(row) for row in rows]
    )
    terminal.say(
        "float32, trained: largest difference of a probability to the Keras "
        "model in float32, and to the trained one as it was evaluated; same: "
        "images with the likeliest class of float32; ms: one image; img/s: in "
        f"batches of {BATCH}"
    )
