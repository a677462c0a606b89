"""Heads fitted to nested subsets of images, judged on images left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from flowers17_tfdata.data import splitting
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.phases import train_data
from flowers17_tfdata.scoring.scaling_law import Judged
from flowers17_tfdata.training import linear_head

FOLDS = 5
# Each draws other folds and other subsets.
REPEATS = 3
NUM_SIZES = 5
NUM_FITS = FOLDS * REPEATS * NUM_SIZES
# The smallest subset, as a share of the images of a fit. It holds at least
# `_LEAST_PER_CLASS` groups of the median class: with fewer the error falls by
# another law.
_SMALLEST, _LARGEST_SMALLEST = 1 / 8, 1 / 2
_LEAST_PER_CLASS = 2
# A class with fewer groups isn't judged: some fits would know hardly any.
LEAST_GROUPS = FOLDS


def judge(
    features: Features,
    groups: np.ndarray,
    num_classes: int,
    *,
    weight_decay: float,
    balanced: bool,
    seed: int,
    on_fit: Callable[[], None] = lambda: None,
) -> Judged:
    """Judges each image by heads that were fitted to few and to more images.

    In each repeat the images are divided into `FOLDS` folds. The heads of a
    fold are fitted to nested subsets of the other folds and judge its images,
    as they are (view 0). So all images are judged at all sizes, not only those
    of a small validation split.

    Args:
      features: the features and labels of the images.
      groups: int64 `[n]`; near-duplicates share a group.
      num_classes: the number of classes of the data set.
      weight_decay: what all heads are fitted with, see `linear_head.fit`.
      balanced: whether every class has the same share of the loss.
      seed: any integer.
      on_fit: called after each of `NUM_FITS` fits.

    Raises:
      UserError: no class has `FOLDS` groups.
    """
    labels = features.labels
    num_groups = np.array(
        [len(np.unique(groups[labels == c])) for c in range(num_classes)]
    )
    if num_groups.max() < LEAST_GROUPS:
        raise UserError(
            f"--phase=learning_curve needs a class of {LEAST_GROUPS} images "
            "in train and validation (near-duplicates and groups count as one);"
            f" the largest has {num_groups.max()}"
        )
    judged = num_groups[labels] >= LEAST_GROUPS
    fractions = _fractions(num_groups[num_groups >= LEAST_GROUPS])
    wrong = np.zeros([REPEATS, NUM_SIZES, len(labels)], bool)
    counts = np.zeros([REPEATS, FOLDS, NUM_SIZES])
    for repeat in range(REPEATS):
        folds = splitting.out_of_fold_parts(
            labels, groups, FOLDS, REPEATS * seed + repeat
        )
        for fold in range(FOLDS):
            rng = np.random.default_rng([seed, repeat, fold])
            left_out, others = folds == fold, np.flatnonzero(folds != fold)
            chosen = nested_subsets(
                labels[others], groups[others], fractions, rng
            )
            for size, subset in enumerate(chosen):
                part = _select(features, others[subset])
                head = linear_head.fit(
                    part,
                    num_classes,
                    seed=seed,
                    weight_decay=weight_decay,
                    example_weights=_weights(part, num_classes, balanced),
                )
                logits = features.values[0, left_out] @ head.kernel + head.bias
                is_wrong = logits.argmax(axis=1) != labels[left_out]
                wrong[repeat, size, left_out] = is_wrong
                counts[repeat, fold, size] = len(part.labels)
                on_fit()
    return Judged(
        wrong[:, :, judged],
        counts.mean(axis=(0, 1)),
        labels[judged],
        groups[judged],
    )


def _fractions(num_groups: np.ndarray) -> np.ndarray:
    """Returns the sizes of the subsets, in (0, 1], rising geometrically.

    Args:
      num_groups: int64, the number of groups of each class that is judged.
    """
    in_a_fit = np.median(num_groups) * (1 - 1 / FOLDS)
    smallest = np.clip(
        _LEAST_PER_CLASS / in_a_fit, _SMALLEST, _LARGEST_SMALLEST
    )
    return np.geomspace(smallest, 1, NUM_SIZES)


def nested_subsets(
    labels: np.ndarray,
    groups: np.ndarray,
    fractions: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yields the images of each subset, bool `[n]`; each contains the last.

    A subset holds whole groups, the given fraction of each class's groups (one
    more or less, by chance) and at least one of each. A group of several
    classes counts as one of its first image's.

    Args:
      labels: int64 `[n]`.
      groups: int64 `[n]`.
      fractions: float64, in (0, 1], rising.
      rng: draws the order of the groups.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    label = labels[first]
    counts = np.bincount(label)
    order = rng.permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    # The place of each group within its class, from 0.
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    # Where the fraction is between two numbers of groups, chance decides.
    position = (place + rng.random(len(counts))[label]) / counts[label]
    for fraction in fractions:
        yield ((position < fraction) | (place == 0))[group]


def _select(features: Features, chosen: np.ndarray) -> Features:
    return Features(features.values[:, chosen], features.labels[chosen])


def _weights(
    part: Features, num_classes: int, balanced: bool
) -> np.ndarray | None:
    if not balanced:
        return None
    weights = train_data.balanced_class_weights(part.labels, num_classes)
    return weights[part.labels]
