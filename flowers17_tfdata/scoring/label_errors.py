"""Finds labels that are probably wrong, from out-of-fold probabilities.

Confident learning (C. Northcutt, L. Jiang and I. Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", JAIR 70 (2021)): an image counts
towards a class if its probability there is at least that class's mean
probability among the images labelled so. Such counts estimate how many labels
are wrong, and which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The most similarities that are held at once.
_CHUNK = 2**24


class Suspicion(NamedTuple):
    """How suspicious the labels of n images are.

    Attributes:
      order: int64 `[n]`, the positions of the images, most suspicious first.
      suggested: int64 `[n]`, the most probable other class of each.
      contradicted: bool `[n]`, whether a near-duplicate has another label,
        which is more probable.
    """

    order: np.ndarray
    suggested: np.ndarray
    contradicted: np.ndarray


def confident_classes(
    probabilities: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Returns the class that each image counts towards, int64 `[n]`.

    It is the most probable of those whose threshold the image reaches, and -1
    if it reaches none.

    Args:
      probabilities: float `[n, num_classes]`, by models that have not seen the
        image.
      labels: int64 `[n]`, the given classes.
    """
    thresholds = np.array(
        [
            column[labels == k].mean() if (labels == k).any() else np.inf
            for k, column in enumerate(probabilities.T)
        ]
    )
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def estimate_errors(labels: np.ndarray, confident: np.ndarray) -> int:
    """Estimates how many labels are wrong.

    It is the sum of the confident joint off the diagonal, after each row was
    scaled to the number of images that have the label.

    Args:
      labels: int64 `[n]`, the given classes.
      confident: int64 `[n]`, from `confident_classes`.
    """
    total = 0.0
    for label in np.unique(labels):
        counted = confident[(labels == label) & (confident >= 0)]
        if len(counted):
            share = np.mean(counted != label)
            total += share * np.count_nonzero(labels == label)
    return round(total)


def rank(
    probabilities: np.ndarray,
    labels: np.ndarray,
    twins: Sequence[tuple[int, int]] = (),
    unjudged: np.ndarray | None = None,
) -> Suspicion:
    """Ranks images by how suspicious their labels are.

    An image that a near-duplicate contradicts comes first; then the label that
    is less probable.

    Args:
      probabilities: see `confident_classes`.
      labels: int64 `[n]`, the given classes.
      twins: pairs of positions of near-duplicates.
      unjudged: bool `[n]`, the images whose class no model knew; they come
        last. Defaults to none.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels].astype(np.float64)
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    contradicted = np.zeros(len(labels), bool)
    for pair in twins:
        for k, twin in (pair, pair[::-1]):
            if probabilities[k, labels[twin]] > own[k]:
                contradicted[k] = True
                suggested[k] = labels[twin]
    score = own - contradicted
    if unjudged is not None:
        score[unjudged] = 2
    return Suspicion(np.argsort(score, kind="stable"), suggested, contradicted)


def nearest(
    features: np.ndarray, wanted: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the most similar other images of some images.

    Args:
      features: float32 `[n, channels]`.
      wanted: int64 `[m]`, the positions of these images.
      count: the number of neighbours, below n.

    Returns:
      Their positions, int64 `[m, count]`, the nearest first, and the cosines of
      the angles between the features, float32 `[m, count]`.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    places, cosines = [], []
    step = max(1, _CHUNK // len(unit))
    for start in range(0, len(wanted), step):
        chosen = wanted[start : start + step]
        similar = unit[chosen] @ unit.T
        similar[np.arange(len(chosen)), chosen] = -np.inf
        first = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(similar, first, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        places.append(np.take_along_axis(first, order, axis=1))
        cosines.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(places), np.concatenate(cosines)
