"""Thresholds with a stated error rate, and sets of classes (conformal)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# The share of pictures for which a threshold or a set holds.
LEVEL = 0.95

# The share of the examples that counts as uncertain, and the fewest of them:
# with fewer than 19, no threshold can hold at 95 %.
_UNCERTAIN = 0.2
_FEWEST = 20


def upper_limit(scores: np.ndarray, level: float = LEVEL) -> float:
    """Returns the limit that a new score exceeds with probability 1 - level.

    The bound holds for every distribution, if the new score and the n given
    ones are exchangeable: it is the ceil((n + 1) * level)-th smallest of them,
    or infinity if n is too small (V. Vovk, A. Gammerman and G. Shafer,
    "Algorithmic learning in a random world", 2005; J. Lei et al.,
    "Distribution-free predictive inference for regression", 2018).

    Args:
      scores: float `[n]`.
      level: in (0, 1).
    """
    rank = math.ceil((len(scores) + 1) * level)
    if rank > len(scores):
        return math.inf
    return float(np.sort(scores)[rank - 1])


class SetThresholds(NamedTuple):
    """Which classes are in the set of a picture.

    A class is in it if it is the most likely one, or if its probability reaches
    `uncertain` for a picture whose largest probability is below `certain_from`,
    and `certain` for any other picture.

    Attributes:
      certain_from: the largest probability from which a picture counts as
        certain, in [0, 1].
      uncertain: the least probability in the set of an uncertain picture; 0:
        all classes are in it.
      certain: the least probability in the set of a certain picture.
    """

    certain_from: float
    uncertain: float
    certain: float

    def members(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns whether each class is in the set, bool `[n, num_classes]`.

        Args:
          probabilities: float `[n, num_classes]`.
        """
        largest = probabilities.max(axis=1, keepdims=True)
        is_certain = largest >= self.certain_from
        least = np.where(is_certain, self.certain, self.uncertain)
        return (probabilities >= least) | (probabilities >= largest)


def fit_sets(probabilities: np.ndarray, labels: np.ndarray) -> SetThresholds:
    """Returns thresholds for sets that hold the true class in 95 % of cases.

    These are the sets of M. Sadinle, J. Lei and L. Wasserman, "Least ambiguous
    set-valued classifiers with bounded error levels" (2019), one threshold for
    uncertain and one for certain pictures (Mondrian conformal prediction, V.
    Vovk et al. 2003). With a single threshold, a model that is right in 97 % of
    cases would never name a second class: the certain pictures would make up
    for the uncertain ones, of which only 83 % held the true class on Oxford
    Flowers-17. The uncertain ones are the fifth with the smallest largest
    probability, but at least 20.

    Args:
      probabilities: float `[n, num_classes]` of examples that the model was not
        trained on.
      labels: int64 `[n]`.
    """
    total = len(labels)
    largest = probabilities.max(axis=1)
    own = probabilities[np.arange(total), labels]

    def least(chosen: np.ndarray) -> float:
        return max(0.0, -upper_limit(-own[chosen]))

    num_uncertain = max(_FEWEST, round(_UNCERTAIN * total))
    if num_uncertain < total:
        certain_from = float(np.sort(largest)[num_uncertain])
        is_certain = largest >= certain_from
        if min(is_certain.sum(), (~is_certain).sum()) >= _FEWEST:
            return SetThresholds(
                certain_from, least(~is_certain), least(is_certain)
            )
    # Too few examples, or all equally certain.
    one = least(np.full(total, True))
    return SetThresholds(0.0, one, one)
