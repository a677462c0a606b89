"""Accuracy, its confidence interval, and the scores of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowers17_tfdata.scoring.predictions import Predictions

# The two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion.

    E. B. Wilson, "Probable inference", JASA 22 (1927). Unlike the normal
    approximation it stays within [0, 1] and has a width at 0 and 1.
    """
    p, z2 = correct / total, _Z**2
    scale = 1 + z2 / total
    centre = (p + z2 / (2 * total)) / scale
    half = _Z * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def summarize(
    predictions: Predictions, split: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the scores of `evaluation.json`.

    The loss is the cross-entropy without label smoothing, nats. The confusion
    matrix counts the true class (row) by the predicted class (column).
    """
    labels, logits = predictions.labels, predictions.logits
    num_classes, total = logits.shape[1], len(labels)
    confusion = np.zeros([num_classes, num_classes], np.int64)
    np.add.at(confusion, (labels, predictions.predicted), 1)
    correct = int(np.trace(confusion))
    own = logits[np.arange(total), labels][:, np.newaxis]
    # Like tf.math.in_top_k, this counts ties with the fifth class.
    top_5 = (logits > own).sum(axis=1) < 5
    shifted = logits.astype(np.float64) - own
    peak = shifted.max(axis=1, keepdims=True)
    losses = peak[:, 0] + np.log(np.exp(shifted - peak).sum(axis=1))
    return {
        "split": split,
        "num_examples": total,
        "accuracy": correct / total,
        "accuracy_interval": list(wilson_interval(correct, total)),
        "top_5_accuracy": float(top_5.sum()) / total,
        "loss": float(losses.sum()) / total,
        "per_class": per_class_scores(confusion, class_names),
        "class_names": list(class_names),
        "confusion_matrix": confusion.tolist(),
    }


def per_class_scores(
    confusion: np.ndarray, class_names: Sequence[str]
) -> dict[str, dict[str, float | int]]:
    """Returns precision, recall, F1 and support of every class.

    A score whose denominator is 0 (a class that is never predicted or has no
    examples) is 0.
    """

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.zeros(len(a)), where=b != 0)

    hits, support = np.diag(confusion), confusion.sum(axis=1)
    precision = ratio(hits, confusion.sum(axis=0))
    recall = ratio(hits, support)
    f1 = ratio(2 * precision * recall, precision + recall)
    names = ("precision", "recall", "f1", "support")
    columns = (values.tolist() for values in (precision, recall, f1, support))
    rows = zip(class_names, *columns, strict=True)
    return {name: dict(zip(names, row, strict=True)) for name, *row in rows}
