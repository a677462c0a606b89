"""Calibration: probabilities that say how often the model is right."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

# The temperature is searched between these.
_LEAST, _MOST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature by which to divide the logits.

    It minimizes the cross-entropy of examples that the model was not trained on
    (C. Guo et al., "On calibration of modern neural networks", 2017,
    https://arxiv.org/abs/1706.04599). No answer changes: dividing all logits by
    one number keeps their order.

    A model without an error on the n examples would be made infinitely sure.
    So the true class has the probability (n + 1) / (n + 2), as if the next
    example could be wrong (J. Platt, "Probabilistic outputs for support vector
    machines", 1999).

    Args:
      logits: float `[n, num_classes]`, n >= 1 and two classes or more.
      labels: int64 `[n]`.
    """
    logits = logits.astype(np.float64)
    total, num_classes = logits.shape
    missing = 1 / (total + 2)
    targets = np.full(logits.shape, missing / (num_classes - 1))
    targets[np.arange(total), labels] = 1 - missing

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return -float((targets * special.log_softmax(scaled, axis=1)).sum())

    found = optimize.minimize_scalar(
        loss, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded"
    )
    return float(np.exp(found.x))
