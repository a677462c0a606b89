"""Pools the folds of a cross-validation into one result."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.scoring import predictions, scores, trust_scores
from flowers17_tfdata.scoring.predictions import Predictions

# The entries of a fold's `evaluation.json` that the result repeats.
_FOLD_ENTRIES = ("dataset", "num_examples", "accuracy", "accuracy_interval")


def pool(workdir: pathlib.Path, num_folds: int) -> dict[str, Any]:
    """Pools the test predictions of all folds.

    Args:
      workdir: a folder whose subfolders `fold_0`, `fold_1`, ... each hold an
        evaluated run.
      num_folds: the number of folds.

    Returns:
      The contents of `cross_validation.json`: the scores of `evaluation.json`
      on all images, each predicted by the model that was not trained on it;
      `calibration`, see `trust_scores.calibration_scores`;
      `folds`, a record for each fold; `over_folds`, the spread of the folds'
      accuracies.

    Raises:
      UserError: a file is missing or damaged, or the folds don't divide the
        same images.
    """
    folders = [workdir / f"fold_{k}" for k in range(num_folds)]
    evaluations = [
        files.read_json(folder / "evaluation.json") for folder in folders
    ]
    parts = [
        predictions.load(predictions.predictions_path(folder, "test"))
        for folder in folders
    ]
    pooled = Predictions(
        tuple(image_id for part in parts for image_id in part.ids),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.logits for part in parts]),
    )
    num_tested = len(pooled.ids)
    for folder in folders:
        # Did the folds test all images that this fold divided?
        splits = files.read_json(folder / "audit.json")["splits"]
        total = sum(split["num_examples"] for split in splits.values())
        if total != num_tested:
            raise UserError(
                f"{folder} divides {total} images, but the folds test "
                f"{num_tested}: the data set changed between them; run the "
                "same command again"
            )
    accuracies = [one["accuracy"] for one in evaluations]
    return {
        **scores.summarize(pooled, "test", evaluations[0]["class_names"]),
        "calibration": trust_scores.calibration_scores(
            pooled.logits, pooled.labels
        ),
        "over_folds": {
            "mean": statistics.fmean(accuracies),
            "standard_deviation": statistics.stdev(accuracies),
            "minimum": min(accuracies),
            "maximum": max(accuracies),
        },
        "folds": [
            {"fold": k, "workdir": f"fold_{k}"}
            | {name: one[name] for name in _FOLD_ENTRIES}
            for k, one in enumerate(evaluations)
        ],
    }
