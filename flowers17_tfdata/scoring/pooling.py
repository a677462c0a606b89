"""The result of a cross-validation: what its folds say, put together."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.scoring import predictions, scores
from flowers17_tfdata.scoring.predictions import Predictions

# Of its `evaluation.json`.
_OF_A_FOLD = ("dataset", "num_examples", "accuracy", "accuracy_interval")


def pool(workdir: pathlib.Path, num_folds: int) -> dict[str, Any]:
    """Puts together what the models of all folds say of their test splits.

    Args:
      workdir: whose folders `fold_0`, ... hold an evaluated run each.
      num_folds: how many.

    Returns:
      The contents of `cross_validation.json`: those of `evaluation.json`, of
      all images, each by the model that was not trained on it; `folds`, a
      record each; `over_folds`, how their accuracies spread.

    Raises:
      UserError: a file is missing or damaged; the folds are not of the same
        images.
    """
    folders = [workdir / f"fold_{k}" for k in range(num_folds)]
    evaluations = [
        files.read_json(folder / "evaluation.json") for folder in folders
    ]
    parts = [
        predictions.load(predictions.predictions_path(folder, "test"))
        for folder in folders
    ]
    together = Predictions(
        tuple(image_id for part in parts for image_id in part.ids),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.logits for part in parts]),
    )
    for folder in folders:
        _check_size(folder, len(together.ids))
    accuracies = [one["accuracy"] for one in evaluations]
    return {
        **scores.summarize(
            scores.tally(together), "test", evaluations[0]["class_names"]
        ),
        "over_folds": {
            "mean": statistics.fmean(accuracies),
            "standard_deviation": statistics.stdev(accuracies),
            "minimum": min(accuracies),
            "maximum": max(accuracies),
        },
        "folds": [
            {
                "fold": k,
                "workdir": folder.name,
                **{name: one[name] for name in _OF_A_FOLD},
            }
            for k, (folder, one) in enumerate(
                zip(folders, evaluations, strict=True)
            )
        ],
    }


def _check_size(folder: pathlib.Path, num_tested: int) -> None:
    """Checks that what the folds tested is what one of them divided."""
    splits = files.read_json(folder / "audit.json")["splits"]
    total = sum(split["num_examples"] for split in splits.values())
    if total != num_tested:
        raise UserError(
            f"{folder} divides {total} images, but the folds test "
            f"{num_tested}: the data set changed between them; give the same "
            "command again"
        )
