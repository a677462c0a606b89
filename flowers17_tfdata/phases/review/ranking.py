"""Ranks the images of a data set by how suspicious their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data import splitting
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.phases.frozen_features import ImageFeatures
from flowers17_tfdata.scoring import label_errors
from flowers17_tfdata.scoring.predictions import softmax
from flowers17_tfdata.training import linear_head

_FOLDS = 5

# Between 0.003 and 0.1, it hardly changes the ranking.
_WEIGHT_DECAY = 0.03


class Ranking(NamedTuple):
    """The images of a data set, ranked.

    Attributes:
      suspicion: their order, and the classes suggested.
      probabilities: float32 `[n, num_classes]`, by heads that have seen neither
        the image nor another one of its group.
      num_estimated: the number of labels that are estimated to be wrong.
    """

    suspicion: label_errors.Suspicion
    probabilities: np.ndarray
    num_estimated: int


def rank(
    images: ImageFeatures,
    num_classes: int,
    twins: Sequence[tuple[int, int]],
    seed: int,
) -> Ranking:
    """Ranks images by two rounds of out-of-fold classification.

    Labels that look wrong in the first round teach nothing in the second.

    Args:
      images: the images.
      num_classes: the number of classes of the data set.
      twins: pairs of positions of near-duplicates.
      seed: the seed of the folds.

    Raises:
      UserError: all images are near-duplicates, or in one group.
    """
    features, labels = images.features, images.features.labels
    folds = splitting.out_of_fold_parts(labels, images.groups, _FOLDS, seed)
    if len(np.unique(folds)) < 2:
        raise UserError(
            "--phase=review needs images of at least 2 groups (near-duplicates "
            "count as one); got 1"
        )

    def classify(weights: np.ndarray | None) -> np.ndarray:
        logits = linear_head.out_of_fold_logits(
            features,
            num_classes,
            folds,
            weight_decay=_WEIGHT_DECAY,
            example_weights=weights,
            is_rough=True,
        )
        return softmax(logits)

    judged = splitting.known_elsewhere(labels, folds)

    def confident_classes(probabilities: np.ndarray) -> np.ndarray:
        # The threshold of a class that no head knew would be next to 0.
        classes = np.full(len(labels), -1)
        classes[judged] = label_errors.confident_classes(
            probabilities[judged], labels[judged]
        )
        return classes

    confident = confident_classes(classify(None))
    looks_wrong = (confident >= 0) & (confident != labels)
    second = classify(np.where(looks_wrong, 0, 1).astype(np.float32))
    return Ranking(
        label_errors.rank(second, labels, twins, ~judged),
        second,
        label_errors.estimate_errors(labels, confident_classes(second)),
    )
