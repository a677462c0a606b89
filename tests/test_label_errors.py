"""Suspicious labels: thresholds, estimates, ranking, neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.phases.frozen_features import ImageFeatures
from flowers17_tfdata.phases.review import ranking
from flowers17_tfdata.scoring import label_errors

CLASSES, PER_CLASS, CHANNELS = 5, 40, 12


def _images(seed=0, share=0.06, spread=1.0) -> tuple[ImageFeatures, np.ndarray]:
    """Returns clouds of features, and which labels were exchanged."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(CLASSES), PER_CLASS)
    count = len(true)
    centres = 3 * rng.normal(size=[CLASSES, CHANNELS])
    values = centres[true] + spread * rng.normal(size=[count, CHANNELS])
    exchanged = rng.permutation(count) < share * count
    given = (true + exchanged * rng.integers(1, CLASSES, count)) % CLASSES
    ids = tuple(map(str, range(count)))
    images = ImageFeatures(
        ids,
        ("train",) * count,
        np.arange(count),
        Features(values[np.newaxis].astype(np.float32), given),
        # The ranking reads no scan.
        None,
    )
    return images, exchanged


@pytest.mark.parametrize("seed", [0, 1])
def test_exchanged_labels_come_first(seed):
    images, exchanged = _images(seed)
    found = ranking.rank(images, CLASSES, [], seed=0)
    first = found.suspicion.order[: len(exchanged) // 10]
    assert exchanged[first].sum() >= 0.9 * exchanged.sum()
    assert abs(found.num_estimated - exchanged.sum()) <= 4
    true = np.repeat(np.arange(CLASSES), PER_CLASS)
    right = found.suspicion.suggested == true
    assert right[exchanged].mean() >= 0.9


def test_labels_that_are_right_are_not_estimated_to_be_wrong():
    images, _ = _images(share=0)
    assert ranking.rank(images, CLASSES, [], seed=0).num_estimated <= 1


def test_thresholds_and_the_confident_joint_by_hand():
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.3, 0.0],
            [0.2, 0.8, 0.0],
            [0.1, 0.9, 0.0],
            [0.3, 0.7, 0.0],
        ]
    )
    # Thresholds: 0.6 for class 0, 0.8 for class 1; class 2 has no image.
    labels = np.array([0, 0, 0, 1, 1])
    confident = label_errors.confident_classes(probabilities, labels)
    assert confident.tolist() == [0, 0, 1, 1, -1]
    # A third of the three labels 0, none of the two labels 1.
    assert label_errors.estimate_errors(labels, confident) == 1


def test_a_near_duplicate_with_a_likelier_label_comes_first():
    probabilities = np.array(
        [[0.6, 0.4], [0.3, 0.7], [0.05, 0.95], [0.9, 0.1]], np.float32
    )
    labels = np.array([1, 0, 0, 0])
    alone = label_errors.rank(probabilities, labels)
    assert alone.order.tolist() == [2, 1, 0, 3]
    assert not alone.contradicted.any()
    # A pair of one class says nothing.
    found = label_errors.rank(probabilities, labels, [(3, 0), (1, 2)])
    assert found.order.tolist() == [0, 2, 1, 3]
    assert found.contradicted.tolist() == [True, False, False, False]
    assert found.suggested.tolist() == [0, 1, 1, 1]


def test_a_class_that_no_model_knew_comes_last():
    images, _ = _images(share=0)
    labels = images.features.labels.copy()
    labels[7] = CLASSES
    images = images._replace(features=images.features._replace(labels=labels))
    found = ranking.rank(images, CLASSES + 1, [], seed=0)
    assert found.suspicion.order[-1] == 7
    assert found.num_estimated <= 1
    with pytest.raises(UserError, match="at least 2 groups"):
        one = images._replace(groups=np.zeros(len(labels), np.int64))
        ranking.rank(one, CLASSES + 1, [], seed=0)


def test_nearest_neighbours(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=[30, 6]).astype(np.float32)
    features[4] = 2 * features[9]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -2)
    wanted = np.array([9, 3, 20, 4, 11])
    # Two at a time.
    monkeypatch.setattr(label_errors, "_CHUNK", 60)
    places, cosines = label_errors.nearest(features, wanted, 3)
    np.testing.assert_array_equal(
        places, np.argsort(-similar[wanted], axis=1)[:, :3]
    )
    assert places[0, 0] == 4
    assert cosines[0, 0] == pytest.approx(1)
    np.testing.assert_allclose(
        cosines, np.take_along_axis(similar[wanted], places, 1), atol=1e-6
    )
