"""Accuracy, its confidence interval, and the scores of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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


def evaluate(eval_step: Callable, batches: Iterable) -> dict[str, Any]:
    """Runs the model over one pass of batches.

    Args:
      eval_step: `Trainer.eval_step`.
      batches: `Batch`es, distributed over the trainer's strategy.

    Returns:
      `num_examples`, `accuracy`, `top_5_accuracy`, `loss` (cross-entropy
      without label smoothing, nats) and `confusion` (int `[classes, classes]`,
      true class by predicted class).
    """
    loss, top_5, confusion = 0.0, 0.0, np.zeros([], int)
    for batch in batches:
        totals = eval_step(batch)
        loss += float(totals.loss)
        top_5 += float(totals.top_5_correct)
        confusion = confusion + np.rint(totals.confusion.numpy()).astype(int)
    return _to_rates(confusion, top_5, loss)


def tally(predictions: Predictions) -> dict[str, Any]:
    """Returns the same as `evaluate`, computed from predictions."""
    labels, logits = predictions.labels, predictions.logits
    num_classes = logits.shape[1]
    confusion = np.zeros([num_classes, num_classes], np.int64)
    np.add.at(confusion, (labels, predictions.predicted), 1)
    own = logits[np.arange(len(labels)), labels][:, np.newaxis]
    # Like tf.math.in_top_k, this counts ties with the fifth class.
    top_5 = (logits > own).sum(axis=1) < 5
    shifted = logits.astype(np.float64) - own
    peak = shifted.max(axis=1, keepdims=True)
    losses = peak[:, 0] + np.log(np.exp(shifted - peak).sum(axis=1))
    return _to_rates(confusion, float(top_5.sum()), float(losses.sum()))


def _to_rates(
    confusion: np.ndarray, top_5_correct: float, loss_sum: float
) -> dict[str, Any]:
    total = int(confusion.sum())
    return {
        "num_examples": total,
        "accuracy": float(np.trace(confusion)) / total,
        "top_5_accuracy": top_5_correct / total,
        "loss": loss_sum / total,
        "confusion": confusion,
    }


def summarize(
    result: dict[str, Any], split: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Turns the result of `evaluate` into the contents of `evaluation.json`."""
    confusion, total = result["confusion"], result["num_examples"]
    interval = wilson_interval(int(np.trace(confusion)), total)
    return {
        "split": split,
        "num_examples": total,
        "accuracy": result["accuracy"],
        "accuracy_interval": list(interval),
        "top_5_accuracy": result["top_5_accuracy"],
        "loss": result["loss"],
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
    columns = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": support,
    }
    return {
        name: {score: values[k].item() for score, values in columns.items()}
        for k, name in enumerate(class_names)
    }
