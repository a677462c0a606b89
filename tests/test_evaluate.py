"""The numbers of `evaluation.json` for literal inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from flowers17_tfdata.scoring import scores
from flowers17_tfdata.scoring.predictions import Predictions


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(correct, total, low, high):
    interval = scores.wilson_interval(correct, total)
    np.testing.assert_allclose(interval, [low, high], atol=5e-5)


def test_per_class_scores():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [1, 0, 0]])
    by_class = scores.per_class_scores(confusion, ["a", "b", "never"])
    assert by_class["a"] == pytest.approx(
        {"precision": 0.5, "recall": 0.75, "f1": 0.6, "support": 4}
    )
    assert by_class["b"]["precision"] == pytest.approx(0.8)
    # Never predicted: no score, no division by zero.
    assert by_class["never"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
    }


def test_scores_of_logits():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 8, 50), rng.normal(size=[50, 8])
    logits = logits.astype(np.float32)
    result = scores.summarize(
        Predictions((), labels, logits), "test", list("abcdefgh")
    )
    assert result["num_examples"] == 50
    assert result["accuracy"] == np.mean(logits.argmax(axis=1) == labels)
    ranks = (logits > logits[np.arange(50), labels][:, None]).sum(axis=1)
    assert result["top_5_accuracy"] == np.mean(ranks < 5)
    loss = keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )
    assert result["loss"] == pytest.approx(float(np.mean(loss)), rel=1e-6)
    assert np.sum(result["confusion_matrix"]) == 50
    assert result["confusion_matrix"][labels[0]][logits[0].argmax()] > 0
