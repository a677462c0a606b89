"""Reliability: how well the model's confidence matches its accuracy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MOST_BINS = 15
_FEWEST_BINS = 5
# With fewer examples per bin on average, the bins show noise.
_EXAMPLES_PER_BIN = 10
_NUM_RESAMPLES = 2000


class Bin(NamedTuple):
    """The predictions whose confidence is in (low, high].

    Attributes:
      low: the lower bound, in [0, 1].
      high: the upper bound, in [0, 1].
      num_examples: the number of predictions, at least 1.
      correct: the number of correct predictions.
      confidence: the mean confidence, in [0, 1].
    """

    low: float
    high: float
    num_examples: int
    correct: int
    confidence: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.num_examples


class Reliability(NamedTuple):
    """Confidence and accuracy, in bins of equal width over [0, 1].

    Attributes:
      bins: the bins that contain examples, in increasing order.
      num_bins: the number of bins, including the empty ones.
      ece: the expected calibration error, in [0, 1].
      confidence: the mean confidence of all examples, in [0, 1].
      accuracy: the accuracy on all examples, in [0, 1].
    """

    bins: list[Bin]
    num_bins: int
    ece: float
    confidence: float
    accuracy: float


def choose_num_bins(num_examples: int) -> int:
    """Returns 15, or fewer for a small split, but at least 5."""
    return max(_FEWEST_BINS, min(_MOST_BINS, num_examples // _EXAMPLES_PER_BIN))


def measure(
    confidences: np.ndarray, is_correct: np.ndarray, num_bins: int
) -> Reliability:
    """Bins the predictions by confidence.

    The m-th of M bins holds confidences in ((m - 1) / M, m / M]. With n
    examples, of which n_m are in bin m, ECE = sum over m of
    n_m / n * |accuracy_m - confidence_m| (Naeini et al. 2015, "Obtaining well
    calibrated probabilities using Bayesian binning"; Guo et al. 2017, "On
    calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599).

    Args:
      confidences: float `[n]` in [0, 1], the probability of the predicted
        class; n >= 1.
      is_correct: bool `[n]`, whether the prediction is correct.
      num_bins: the number of bins M.
    """
    confidences = confidences.astype(np.float64)
    index = np.ceil(confidences * num_bins).astype(int) - 1
    # A confidence of 0 belongs to the first bin.
    index = np.maximum(index, 0)
    bins = []
    for k in np.unique(index).tolist():
        inside = index == k
        bins.append(
            Bin(
                k / num_bins,
                (k + 1) / num_bins,
                int(inside.sum()),
                int(is_correct[inside].sum()),
                float(confidences[inside].mean()),
            )
        )
    gaps = [b.num_examples * abs(b.accuracy - b.confidence) for b in bins]
    return Reliability(
        bins,
        num_bins,
        sum(gaps) / len(confidences),
        float(confidences.mean()),
        float(is_correct.mean()),
    )


def ece_interval(
    confidences: np.ndarray, is_correct: np.ndarray, num_bins: int, seed: int
) -> tuple[float, float]:
    """Returns a 95 % interval of the expected calibration error.

    The examples are resampled with replacement (B. Efron, "Bootstrap methods:
    another look at the jackknife", 1979). Noise in the bins makes the error of
    a few hundred examples too large, and that of a resample larger still. So
    the interval is the basic one (A. C. Davison and D. V. Hinkley, "Bootstrap
    methods and their application", 1997, section 5.2), which takes off that
    excess, widened where it would leave out the measured error. It starts at 0
    if a model whose every confidence holds shows as large an error in 5 % of
    simulations.

    Args:
      confidences: see `measure`.
      is_correct: see `measure`.
      num_bins: see `measure`.
      seed: the seed of the resampling.
    """
    total = len(confidences)
    index = np.ceil(confidences.astype(np.float64) * num_bins).astype(int) - 1
    index = np.maximum(index, 0)
    double = confidences.astype(np.float64)
    gaps = is_correct - double

    def error(rows: np.ndarray, differences: np.ndarray) -> float:
        sums = np.bincount(index[rows], differences, minlength=num_bins)
        return float(np.abs(sums).sum() / total)

    everything = np.arange(total)
    ece = error(everything, gaps)
    rng = np.random.default_rng(seed)
    resampled, simulated = [], []
    for _ in range(_NUM_RESAMPLES):
        drawn = rng.integers(total, size=total)
        resampled.append(error(drawn, gaps[drawn]))
        hits = rng.random(total) < double
        simulated.append(error(everything, hits - double))
    least, most = np.percentile(resampled, [2.5, 97.5])
    low, high = max(0.0, 2 * ece - most), max(ece, 2 * ece - least)
    if ece <= np.percentile(simulated, 95):
        low = 0.0
    return float(low), float(high)
