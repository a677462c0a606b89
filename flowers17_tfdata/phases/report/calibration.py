"""Whether the probabilities can be believed: reliability bins and their ECE."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MOST_BINS = 15
_FEWEST_BINS = 5
# Fewer examples than this in a bin, on average, show noise alone.
_EXAMPLES_A_BIN = 10


class Calibration(NamedTuple):
    """Confidence beside accuracy, in bins of equal width over [0, 1].

    Attributes:
      counts: int64 `[bins]`, examples whose confidence falls in the bin.
      correct: int64 `[bins]`, those of them that are right.
      confidence: float64 `[bins]`, their mean confidence; NaN: an empty bin.
      accuracy: float64 `[bins]`, their accuracy; NaN: an empty bin.
      ece: expected calibration error, in [0, 1].
      mean_confidence: over all examples, in [0, 1].
      mean_accuracy: over all examples, in [0, 1].
    """

    counts: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    mean_confidence: float
    mean_accuracy: float

    @property
    def num_bins(self) -> int:
        return len(self.counts)


def choose_num_bins(num_examples: int) -> int:
    """Returns 15 bins, or as many fewer (5 at least) as a small split bears."""
    return int(
        np.clip(num_examples // _EXAMPLES_A_BIN, _FEWEST_BINS, _MOST_BINS)
    )


def calibrate(
    confidences: np.ndarray, is_correct: np.ndarray, num_bins: int
) -> Calibration:
    """Bins the predictions by their confidence.

    The m-th of M bins holds confidences in ((m - 1) / M, m / M]. With n
    examples, of which n_m in bin m, ECE = sum over m of
    n_m / n * |accuracy_m - confidence_m| (Naeini et al. 2015, "Obtaining well
    calibrated probabilities using Bayesian binning"; Guo et al. 2017, "On
    calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599).

    Args:
      confidences: float `[n]` in [0, 1], of the predicted class; n >= 1.
      is_correct: bool `[n]`.
      num_bins: M.
    """
    confidences = np.asarray(confidences, np.float64)
    is_correct = np.asarray(is_correct, bool)
    bins = np.ceil(confidences * num_bins).astype(int) - 1
    bins = np.clip(bins, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    correct = np.bincount(bins[is_correct], minlength=num_bins)
    sums = np.bincount(bins, confidences, minlength=num_bins)
    filled = counts > 0
    confidence, accuracy = np.full([2, num_bins], np.nan)
    confidence[filled] = sums[filled] / counts[filled]
    accuracy[filled] = correct[filled] / counts[filled]
    gaps = np.abs(accuracy - confidence)[filled]
    return Calibration(
        counts,
        correct,
        confidence,
        accuracy,
        float((counts[filled] * gaps).sum() / len(confidences)),
        float(confidences.mean()),
        float(is_correct.mean()),
    )
