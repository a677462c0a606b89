"""Which examples of a split are worth a look."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowers17_tfdata.scoring.predictions import Predictions


class Choice(NamedTuple):
    """Positions in the split, each group in the order to show it.

    Attributes:
      worst: wrong ones, the most confident first.
      least_certain: other wrong ones, the smallest margin between the first
        and the second class first.
      exemplars: `{class: position}` of the right one that is most confident.
    """

    worst: list[int]
    least_certain: list[int]
    exemplars: dict[int, int]


class Confusion(NamedTuple):
    """A pair of classes of which one is taken for the other.

    Attributes:
      label: the true class.
      taken_for: the predicted class.
      count: how often.
      share: of the true class's examples, in (0, 1].
    """

    label: int
    taken_for: int
    count: int
    share: float


def choose(predictions: Predictions, most: int) -> Choice:
    """Chooses the mistakes to show, up to `most` of each kind."""
    probabilities = predictions.probabilities
    confidence = probabilities.max(axis=1)
    is_wrong = predictions.predicted != predictions.labels
    by_confidence = np.argsort(-confidence, kind="stable")
    worst = [int(k) for k in by_confidence if is_wrong[k]][:most]
    by_margin = np.argsort(margins(probabilities), kind="stable")
    least_certain = [
        int(k) for k in by_margin if is_wrong[k] and int(k) not in worst
    ][:most]
    exemplars: dict[int, int] = {}
    for k in by_confidence:
        if not is_wrong[k]:
            exemplars.setdefault(int(predictions.labels[k]), int(k))
    return Choice(worst, least_certain, exemplars)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Returns how far the likeliest class leads, `[n]`, in [0, 1].

    Args:
      probabilities: `[n, num_classes]`.
    """
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities))
    top = np.partition(probabilities, -2, axis=1)
    return top[:, -1] - top[:, -2]


def most_confused(confusion: np.ndarray, most: int) -> list[Confusion]:
    """Returns the pairs of classes that are mixed up most often.

    Args:
      confusion: int `[classes, classes]`, true class by predicted.
      most: how many pairs to return at most.
    """
    support = confusion.sum(axis=1)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    pairs = [
        Confusion(int(a), int(b), int(wrong[a, b]), wrong[a, b] / support[a])
        for a, b in np.argwhere(wrong)
    ]
    pairs.sort(key=lambda pair: (-pair.count, -pair.share))
    return pairs[:most]
