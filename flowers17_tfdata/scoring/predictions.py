"""The logits of all examples of a split, kept for later analysis."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from scipy import special

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError, one_line


class Predictions(NamedTuple):
    """A model's predictions on a split.

    Attributes:
      ids: the examples' ids, `[n]`.
      labels: int64 `[n]`, the true classes.
      logits: float32 `[n, num_classes]`.
      model: the path of the model's file; empty if the predictions are pooled
        from several models.
      unknown_scores: float32 `[n]`, how unlike the training images each
        example is; None: the model doesn't say.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    model: str = ""
    unknown_scores: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """float32 `[n, num_classes]`; rows sum to 1."""
        return softmax(self.logits)

    @property
    def predicted(self) -> np.ndarray:
        """int64 `[n]`, the class with the largest logit."""
        return self.logits.argmax(axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float32 probabilities of logits `[..., num_classes]`."""
    double = logits.astype(np.float64)
    return special.softmax(double, axis=-1).astype(np.float32)


def predictions_path(
    workdir: pathlib.Path, split: str, suffix: str = ""
) -> pathlib.Path:
    """Returns where `--phase=evaluate` writes a split's predictions.

    Args:
      workdir: the folder of the run.
      split: the split's name.
      suffix: see `TrainedModel.suffix_in`.
    """
    return workdir / f"predictions_{split}{suffix}.npz"


def save(path: pathlib.Path, predictions: Predictions) -> None:
    """Writes an `.npz` file with an array for each attribute that is there."""
    arrays = predictions._asdict()
    if predictions.unknown_scores is None:
        del arrays["unknown_scores"]
    files.write_arrays(path, arrays)


def load(path: pathlib.Path) -> Predictions:
    """Reads a file that `save` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        arrays = files.read_arrays(path)
        if int(arrays.get("num_views", 1)) > 1:
            raise ValueError("an earlier version averaged several views")
        return Predictions(
            tuple(map(str, arrays["ids"])),
            arrays["labels"],
            arrays["logits"],
            str(arrays["model"]),
            arrays.get("unknown_scores"),
        )
    # NumPy lets through any error of the zip reader.
    except Exception as error:
        raise UserError(
            f"{path} can't be read: {one_line(error, 160)}; "
            "--phase=evaluate writes it anew"
        ) from error
