"""Accuracy, its interval, and where the model fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flowers17_tfdata.scoring.predictions import Predictions

# Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion.

    E. B. Wilson, "Probable inference", JASA 22 (1927). Unlike the normal
    approximation it stays within [0, 1] and has a width at 0 and 1.
    """
    p, z2 = correct / total, _Z**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = (
        _Z
        * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
        / (1 + z2 / total)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(eval_step: Callable, batches: Iterable) -> dict[str, Any]:
    """Runs the model over one pass of batches.

    Args:
      eval_step: `Trainer.eval_step`.
      batches: of `Batch`, distributed over the trainer's strategy.

    Returns:
      `num_examples`, `accuracy`, `top_5_accuracy`, `loss` (cross-entropy
      without label smoothing, nats) and `confusion` (int `[classes, classes]`,
      true class by predicted).
    """
    loss, top_5, confusion = 0.0, 0.0, 0
    for batch in batches:
        totals = eval_step(batch)
        loss += float(totals.loss)
        top_5 += float(totals.top_5_correct)
        confusion = confusion + np.rint(totals.confusion.numpy()).astype(int)
    total = int(confusion.sum())
    return {
        "num_examples": total,
        "accuracy": float(np.trace(confusion)) / total,
        "top_5_accuracy": top_5 / total,
        "loss": loss / total,
        "confusion": confusion,
    }


def tally(predictions: Predictions) -> dict[str, Any]:
    """Returns what `evaluate` does, of predictions that are at hand."""
    labels, logits = predictions.labels, predictions.logits
    num_classes = logits.shape[1]
    confusion = np.zeros([num_classes, num_classes], np.int64)
    np.add.at(confusion, (labels, predictions.predicted), 1)
    own = logits[np.arange(len(labels)), labels][:, np.newaxis]
    # As tf.math.in_top_k: ties with the fifth are in.
    top_5 = (logits > own).sum(axis=1) < 5
    shifted = logits.astype(np.float64) - own
    peak = shifted.max(axis=1, keepdims=True)
    losses = peak[:, 0] + np.log(np.exp(shifted - peak).sum(axis=1))
    return {
        "num_examples": len(labels),
        "accuracy": float(np.trace(confusion)) / len(labels),
        "top_5_accuracy": float(top_5.mean()),
        "loss": float(losses.mean()),
        "confusion": confusion,
    }


def summarize(
    result: dict[str, Any], split: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Turns the result of `evaluate` into the contents of `evaluation.json`."""
    confusion = result["confusion"]
    correct, total = int(np.trace(confusion)), int(confusion.sum())
    return {
        "split": split,
        "num_examples": total,
        "accuracy": result["accuracy"],
        "accuracy_interval": list(wilson_interval(correct, total)),
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

    A score whose denominator is 0 (a class never predicted, or without
    examples) is 0.
    """

    def ratio(a: float, b: float) -> float:
        return float(a / b) if b else 0.0

    scores = {}
    for k, name in enumerate(class_names):
        hits = confusion[k, k]
        precision = ratio(hits, confusion[:, k].sum())
        recall = ratio(hits, confusion[k].sum())
        scores[name] = {
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall),
            "support": int(confusion[k].sum()),
        }
    return scores
