"""The figures of `evaluation.json` against literal expectations."""

from __future__ import annotations

import numpy as np
import pytest

from flowers17_tfdata.scoring import scores


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
