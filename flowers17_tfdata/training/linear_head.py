"""The optimum of a linear head on cached features, found, not trained.

Softmax regression with weight decay is strictly convex: it has one optimum,
which depends on no learning rate, no order and no seed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import tensorflow as tf

from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import classifier
from flowers17_tfdata.training.preemption import StopRequest

# Tried from the strongest on: each optimum is the start of the next fit.
DECAYS = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

# Where there is nothing to choose by.
_DEFAULT_DECAY = 0.01

_FOLDS = 5

# Largest entry of the gradient at which L-BFGS stops. Cross-validation asks
# which decay is better, not for the optimum.
_TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 1e-3
_MAX_ITERATIONS = 1000


class LinearHead(NamedTuple):
    """A fitted head: `logits = features @ kernel + bias`.

    Attributes:
      kernel: float32 `[channels, num_classes]`.
      bias: float32 `[num_classes]`.
      weight_decay: the chosen one.
      losses: cross-validated loss by weight decay, nats; empty where there was
        nothing to choose by.
      iterations: of L-BFGS, for the final fit.
    """

    kernel: np.ndarray
    bias: np.ndarray
    weight_decay: float
    losses: dict[float, float]
    iterations: int

    def evaluate(self, features: Features) -> tuple[float, float]:
        """Returns the loss, nats, and the accuracy on the images themselves.

        Args:
          features: whose view 0 is looked at.
        """
        logits = features.values[0] @ self.kernel + self.bias
        own = logits[np.arange(len(logits)), features.labels]
        losses = scipy.special.logsumexp(logits, axis=1) - own
        hits = logits.argmax(axis=1) == features.labels
        return float(losses.mean()), float(hits.mean())


def fit(
    features: Features,
    num_classes: int,
    *,
    seed: int,
    example_weights: np.ndarray | None = None,
    weight_decay: float | None = None,
    stop: StopRequest | None = None,
) -> LinearHead:
    """Fits a softmax regression to all views of all examples.

    Minimizes the mean cross-entropy plus half the weight decay times the sum of
    the squared kernel, on standardized features, by L-BFGS (R. Byrd, P. Lu, J.
    Nocedal and C. Zhu, "A limited memory algorithm for bound constrained
    optimization", SIAM J. Sci. Comput. 16 (1995)).

    Args:
      features: of what is trained on.
      num_classes: of the data set.
      seed: draws the folds of the cross-validation.
      example_weights: of each example's loss, float32 `[n]`; None: all 1.
      weight_decay: None: that of `DECAYS` with the lowest cross-validated loss.
        All views of an example are in one fold; near-duplicates may not be.
      stop: is told of progress. It can't end the fit, as workers may need
        different numbers of iterations, and would wait for each other.
    """
    stop = stop or StopRequest()
    mean, spread = classifier.mean_and_spread(features.values)
    problem = _Problem(features, num_classes, mean, spread, example_weights)
    losses: dict[float, float] = {}
    if weight_decay is None:
        losses = _cross_validate(problem, seed, stop)
        weight_decay = min(
            losses, key=losses.__getitem__, default=_DEFAULT_DECAY
        )
    everything = np.ones(problem.num_examples, bool)
    solution = problem.solve(everything, weight_decay, _TOLERANCE, stop)
    kernel, bias = problem.unpack(solution.x)
    kernel = kernel / spread[:, np.newaxis]
    return LinearHead(
        kernel.astype(np.float32),
        (bias - mean @ kernel).astype(np.float32),
        weight_decay,
        losses,
        int(solution.nit),
    )


def _cross_validate(
    problem: _Problem, seed: int, stop: StopRequest
) -> dict[float, float]:
    """Returns the mean held-out loss by weight decay, over all folds.

    As far as it falls: weaker decays than the best one take ever longer.
    """
    held_out = _stratified_folds(problem.labels, seed)
    if not held_out:
        return {}
    losses: dict[float, float] = {}
    starts: list[np.ndarray | None] = [None] * len(held_out)
    for decay in DECAYS:
        total = 0.0
        for k, fold in enumerate(held_out):
            solution = problem.solve(
                ~fold, decay, _ROUGH_TOLERANCE, stop, starts[k]
            )
            starts[k] = solution.x
            total += problem.loss(solution.x, fold)
        losses[decay] = total / len(held_out)
        if losses[decay] > min(losses.values()):
            break
    return losses


def _stratified_folds(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Returns masks `[n]` of what each fold holds out, classes in proportion.

    As many folds as the smallest class has examples, but no more than 5. A
    class with one example doesn't count: it is in all folds, and never held
    out. No folds, where no class has more.
    """
    counts = np.bincount(labels)
    repeated = counts[labels] > 1
    if not repeated.any():
        return []
    num_folds = min(_FOLDS, int(counts[counts > 1].min()))
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    position = np.empty(len(labels), int)
    position[order] = np.arange(len(labels))
    return [
        (position % num_folds == fold) & repeated for fold in range(num_folds)
    ]


class _Problem:
    """The loss over subsets of the examples, and its gradient, on the device.

    Rows are views of examples, `[views * n]`, view by view.
    """

    def __init__(
        self,
        features: Features,
        num_classes: int,
        mean: np.ndarray,
        spread: np.ndarray,
        example_weights: np.ndarray | None,
    ):
        values = features.values
        self.labels = features.labels
        self._num_views, self.num_examples, self._channels = values.shape
        self._num_classes = num_classes
        if example_weights is None:
            example_weights = np.ones(self.num_examples)
        self._weights = np.asarray(example_weights, np.float32)
        rows = (values - mean.astype(np.float32)) / spread.astype(np.float32)
        self._rows = tf.constant(rows.reshape(-1, self._channels))
        self._targets = tf.constant(np.tile(self.labels, self._num_views))

    def unpack(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel and bias, in the dtype of the parameters `x`."""
        x = x.reshape(self._channels + 1, self._num_classes)
        return x[:-1], x[-1]

    def solve(
        self,
        selected: np.ndarray,
        decay: float,
        tolerance: float,
        stop: StopRequest,
        start: np.ndarray | None = None,
    ) -> scipy.optimize.OptimizeResult:
        """Minimizes the loss of the selected examples, bool `[n]`."""
        weights = self._row_weights(selected)
        decay_tensor = tf.constant(decay)
        if start is None:
            start = np.zeros((self._channels + 1) * self._num_classes)

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            stop.alive()
            loss, gradient = self._loss_and_gradient(
                tf.constant(x, tf.float32), weights, decay_tensor
            )
            return float(loss), gradient.numpy().astype(np.float64)

        return scipy.optimize.minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            options={
                "gtol": tolerance,
                # Below float32's rounding of the loss, nothing is gained.
                "ftol": 1e-9,
                "maxiter": _MAX_ITERATIONS,
            },
        )

    def loss(self, x: np.ndarray, selected: np.ndarray) -> float:
        """Returns the mean cross-entropy of the selected examples, nats."""
        loss, _ = self._loss_and_gradient(
            tf.constant(x, tf.float32),
            self._row_weights(selected),
            tf.constant(0.0),
        )
        return float(loss)

    def _row_weights(self, selected: np.ndarray) -> tf.Tensor:
        weights = np.tile(self._weights * selected, self._num_views)
        return tf.constant(weights / weights.sum(), tf.float32)

    @tf.function(reduce_retracing=True)
    def _loss_and_gradient(self, x, weights, decay):
        kernel, bias = tf.split(
            tf.reshape(x, [self._channels + 1, self._num_classes]),
            [self._channels, 1],
        )
        logits = self._rows @ kernel + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            self._targets, logits
        )
        loss = tf.tensordot(weights, losses, 1)
        loss += 0.5 * decay * tf.reduce_sum(tf.square(kernel))
        errors = tf.nn.softmax(logits) - tf.one_hot(
            self._targets, self._num_classes
        )
        errors *= weights[:, tf.newaxis]
        gradient = tf.concat(
            [
                tf.matmul(self._rows, errors, transpose_a=True)
                + decay * kernel,
                tf.reduce_sum(errors, axis=0, keepdims=True),
            ],
            axis=0,
        )
        return loss, tf.reshape(gradient, [-1])
