"""The page's tables of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowers17_tfdata.scoring.scores import wilson_interval


class Confusion(NamedTuple):
    """How often one class is taken for another.

    Attributes:
      label: the name of the true class.
      taken_for: the name of the predicted class.
      num_examples: the number of examples.
      fraction: their share of the true class's examples, in (0, 1].
    """

    label: str
    taken_for: str
    num_examples: int
    fraction: float


def result(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what every page shows of a result.

    Args:
      evaluation: contents of `evaluation.json`.

    Returns:
      `evaluation`; `confused` and `per_class`, from the functions below;
      `num_examples`; `num_correct`; `accuracy` with the limits of its 95 %
      interval, `low` and `high`; `largest`, the row of the largest class, and
      `baseline`, the accuracy of always answering it, all in [0, 1].
    """
    accuracy, total = evaluation["accuracy"], evaluation["num_examples"]
    low, high = evaluation["accuracy_interval"]
    rows = per_class(evaluation)
    largest = max(rows, key=lambda row: row["support"])
    return {
        "evaluation": evaluation,
        "confused": most_confused(evaluation),
        "per_class": rows,
        "num_examples": total,
        "num_correct": round(accuracy * total),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "largest": largest,
        "baseline": largest["support"] / total,
    }


def most_confused(evaluation: Mapping[str, Any]) -> list[Confusion]:
    """Returns all confused pairs of classes, the most frequent first.

    Args:
      evaluation: contents of `evaluation.json`.
    """
    names = evaluation["class_names"]
    matrix = np.asarray(evaluation["confusion_matrix"])
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pairs = [
        Confusion(names[a], names[b], int(matrix[a, b]), fractions[a, b])
        for a, b in np.argwhere(matrix)
        if a != b
    ]
    return sorted(pairs, key=lambda pair: (-pair.num_examples, -pair.fraction))


def per_class(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each class, the lowest F1 first.

    Args:
      evaluation: contents of `evaluation.json`.

    Returns:
      The scores of `evaluation.json`; `name`; `interval`, the 95 % interval of
      the recall, or None for a class without examples; `taken_for`, the most
      frequent `Confusion` or None.
    """
    taken_for: dict[str, Confusion] = {}
    for pair in most_confused(evaluation):
        taken_for.setdefault(pair.label, pair)
    hits = np.diag(evaluation["confusion_matrix"]).tolist()
    rows = []
    for name, correct in zip(evaluation["class_names"], hits, strict=True):
        scores = evaluation["per_class"][name]
        support = scores["support"]
        interval = wilson_interval(correct, support) if support else None
        other = taken_for.get(name)
        rows.append(
            {"name": name, "interval": interval, "taken_for": other, **scores}
        )
    return sorted(rows, key=lambda row: row["f1"])
