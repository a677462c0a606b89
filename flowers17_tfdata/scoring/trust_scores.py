"""How far the answers of a split can be trusted: the scores of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowers17_tfdata.scoring import reliability
from flowers17_tfdata.scoring.predictions import Predictions, softmax
from flowers17_tfdata.scoring.reliability import Reliability
from flowers17_tfdata.scoring.scores import wilson_interval


class RiskCoverage(NamedTuple):
    """The accuracy on what is left when the most unlike pictures go.

    Attributes:
      coverage: float `[n]`, the share of the pictures that are answered, in (0,
        1], increasing.
      accuracy: float `[n]`, the accuracy on them.
      low: float `[n]`, the lower limit of its 95 % interval (Wilson).
      high: float `[n]`, the upper limit.
    """

    coverage: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


def measure_reliability(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Bins the predictions of logits float32 `[n, num_classes]`."""
    return reliability.measure(
        softmax(logits).max(axis=1),
        logits.argmax(axis=1) == labels,
        reliability.choose_num_bins(len(labels)),
    )


def calibration_scores(
    logits: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Returns the expected calibration error.

    Returns:
      `ece`; `ece_interval`, its 95 % interval; `num_bins`.
    """
    num_bins = reliability.choose_num_bins(len(labels))
    interval = reliability.ece_interval(
        softmax(logits).max(axis=1),
        logits.argmax(axis=1) == labels,
        num_bins,
        seed=0,
    )
    measured = measure_reliability(logits, labels)
    return {
        "ece": measured.ece,
        "ece_interval": list(interval),
        "num_bins": num_bins,
    }


def summarize(
    predictions: Predictions,
    answers: Mapping[str, np.ndarray],
    temperature: float,
    certain_from: float,
) -> dict[str, Any]:
    """Returns what `evaluation.json` holds under `trust`.

    Args:
      predictions: the predictions of a split.
      answers: `unknown`, bool `[n]`, and `classes_at_95`, bool `[n,
        num_classes]`, for the same examples.
      temperature: the number that the logits were divided by.
      certain_from: the largest probability from which an example is certain.

    Returns:
      `temperature`; the scores of `calibration_scores`; `ece_before`, the error
      without the temperature; `turned_away`: the number of images that are
      `unknown`, and `turned_away_interval` of their share; `answered_accuracy`,
      the accuracy on all others, None if there are none;
      `classes_at_95`: `coverage`, the share of images whose set holds the true
      class, with `coverage_interval`; `mean_size`; and of the uncertain images
      `num_uncertain`, `uncertain_coverage`, `uncertain_coverage_interval`, None
      without any, and `uncertain_mean_size`.
    """
    logits, labels = predictions.logits, predictions.labels
    total = len(labels)
    unknown, members = answers["unknown"], answers["classes_at_95"]
    is_correct = predictions.predicted == labels
    turned_away = int(unknown.sum())
    return {
        "temperature": temperature,
        **calibration_scores(logits, labels),
        "ece_before": measure_reliability(logits * temperature, labels).ece,
        "turned_away": turned_away,
        "turned_away_interval": list(wilson_interval(turned_away, total)),
        "answered_accuracy": (
            None if unknown.all() else float(is_correct[~unknown].mean())
        ),
        "classes_at_95": _set_scores(
            members[np.arange(total), labels],
            members.sum(axis=1),
            predictions.probabilities.max(axis=1) < certain_from,
        ),
    }


def _set_scores(
    holds: np.ndarray, sizes: np.ndarray, uncertain: np.ndarray
) -> dict[str, Any]:
    num_uncertain, held = int(uncertain.sum()), int(holds.sum())
    scores: dict[str, Any] = {
        "coverage": float(holds.mean()),
        "coverage_interval": list(wilson_interval(held, len(holds))),
        "mean_size": float(sizes.mean()),
        "num_uncertain": num_uncertain,
        "uncertain_coverage": None,
        "uncertain_coverage_interval": None,
        "uncertain_mean_size": None,
    }
    if num_uncertain:
        num_held = int(holds[uncertain].sum())
        scores |= {
            "uncertain_coverage": num_held / num_uncertain,
            "uncertain_coverage_interval": list(
                wilson_interval(num_held, num_uncertain)
            ),
            "uncertain_mean_size": float(sizes[uncertain].mean()),
        }
    return scores


def risk_coverage(scores: np.ndarray, is_correct: np.ndarray) -> RiskCoverage:
    """Returns the curve of R. El-Yaniv and Y. Wiener (JMLR 11, 2010).

    Args:
      scores: float `[n]`; the pictures with the largest are turned away first.
      is_correct: bool `[n]`.
    """
    order = np.argsort(scores, kind="stable")
    answered = np.arange(1, len(order) + 1)
    correct = np.cumsum(is_correct[order])
    limits = np.array(
        [
            wilson_interval(int(hits), int(count))
            for hits, count in zip(correct, answered, strict=True)
        ]
    )
    return RiskCoverage(
        answered / len(order), correct / answered, limits[:, 0], limits[:, 1]
    )
