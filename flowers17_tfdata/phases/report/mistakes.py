"""Chooses the examples of a split whose pictures the report shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowers17_tfdata.scoring.predictions import Predictions

# From this probability of its answer on, the model was sure.
SURE = 0.8


class Choice(NamedTuple):
    """Positions in the split, each group in the order to show it.

    Attributes:
      worst: mistakes, the most confident first: those that the model was sure
        of, or if there are none, all.
      least_certain: other mistakes, the smallest margin between the first and
        the second class first.
      exemplars: `{class: position}` of each class's most confident correct
        prediction, the most confident class first.
    """

    worst: list[int]
    least_certain: list[int]
    exemplars: dict[int, int]


def choose(predictions: Predictions, most: int) -> Choice:
    """Chooses the mistakes to show, up to `most` of each kind."""
    probabilities = predictions.probabilities
    confidence = probabilities.max(axis=1)
    is_wrong = predictions.predicted != predictions.labels
    wrong, right = np.flatnonzero(is_wrong), np.flatnonzero(~is_wrong)
    margins = np.ptp(np.sort(probabilities[wrong])[:, -2:], axis=1)
    by_confidence = _sort_by(-confidence[wrong], wrong)
    sure = [k for k in by_confidence if confidence[k] >= SURE]
    worst = (sure or by_confidence)[:most]
    others = [k for k in _sort_by(margins, wrong) if k not in worst]
    exemplars: dict[int, int] = {}
    for k in _sort_by(-confidence[right], right):
        exemplars.setdefault(int(predictions.labels[k]), k)
    return Choice(worst, others[:most], exemplars)


def _sort_by(keys: np.ndarray, positions: np.ndarray) -> list[int]:
    return positions[np.argsort(keys, kind="stable")].tolist()
