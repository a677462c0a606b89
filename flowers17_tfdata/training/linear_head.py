"""Solves for the best linear head on cached features, instead of training it.

Softmax regression with weight decay is strictly convex: it has one optimum,
which depends on no learning rate, no order of the images and no seed.
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

# Tried in this order: each optimum is the start of the next, weaker, fit.
DECAYS = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

# Used if no class has two images, so that there is no cross-validation.
_DEFAULT_DECAY = 0.01

_FOLDS = 5

# L-BFGS stops when no entry of the gradient is larger. Cross-validation only
# compares decays, for which rough optima are enough.
_TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 1e-3
_MAX_ITERATIONS = 1000


class LinearHead(NamedTuple):
    """A fitted head: `logits = features @ kernel + bias`.

    Attributes:
      kernel: float32 `[channels, num_classes]`.
      bias: float32 `[num_classes]`.
      weight_decay: the one that was chosen.
      losses: the cross-validated loss, in nats, for each weight decay that was
        tried; empty if there was no cross-validation.
      iterations: number of L-BFGS iterations of the final fit.
    """

    kernel: np.ndarray
    bias: np.ndarray
    weight_decay: float
    losses: dict[float, float]
    iterations: int

    def evaluate(self, features: Features) -> tuple[float, float]:
        """Returns the loss, in nats, and the accuracy, in [0, 1].

        Args:
          features: evaluated on view 0, the image without augmentation.
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
    weight_decay: float | None = None,
    example_weights: np.ndarray | None = None,
    stop: StopRequest | None = None,
) -> LinearHead:
    """Fits a softmax regression to all views of all examples.

    Minimizes the mean cross-entropy plus half the weight decay times the sum of
    the squared kernel, on standardized features, by L-BFGS (R. Byrd, P. Lu, J.
    Nocedal and C. Zhu, "A limited memory algorithm for bound constrained
    optimization", SIAM J. Sci. Comput. 16 (1995)).

    Args:
      features: the features and labels of the training images.
      num_classes: number of classes of the data set.
      seed: seed for the folds of the cross-validation.
      weight_decay: the weight decay; None: the one in `DECAYS` with the lowest
        cross-validated loss. There, all views of an example are in the same
        fold; near-duplicates may be in different ones.
      example_weights: the weight of each example in the loss, float32 `[n]`;
        None: all 1.
      stop: is told that the fit makes progress. It can't end the fit: workers
        may need different numbers of iterations, and one that stopped would
        leave the others waiting.
    """
    labels = features.labels
    standardized, mean, spread = _standardize(features)
    problem = _Problem(standardized, num_classes, example_weights, stop)
    losses: dict[float, float] = {}
    if weight_decay is None:
        held_out = _stratified_folds(labels, seed)
        losses = _cross_validate(problem, held_out) if held_out else {}
        weight_decay = min(
            losses, key=losses.__getitem__, default=_DEFAULT_DECAY
        )
    everything = np.ones(len(labels), bool)
    solution = problem.solve(everything, weight_decay, _TOLERANCE)
    x = solution.x.reshape(-1, num_classes)
    kernel, bias = classifier.for_raw_features(x[:-1], x[-1], mean, spread)
    return LinearHead(kernel, bias, weight_decay, losses, int(solution.nit))


def out_of_fold_logits(
    features: Features,
    num_classes: int,
    folds: np.ndarray,
    *,
    weight_decay: float,
    example_weights: np.ndarray | None = None,
    is_rough: bool = False,
    stop: StopRequest | None = None,
) -> np.ndarray:
    """Classifies each example by a head that is fitted to the other folds.

    Args:
      features: the features and labels of the images.
      num_classes: number of classes of the data set.
      folds: the fold of each example, int64 `[n]`; at least two different ones.
      weight_decay: see `fit`, which chooses it.
      example_weights: see `fit`.
      is_rough: whether rough optima are enough, which take half the time.
      stop: see `fit`.

    Returns:
      The logits of view 0, float32 `[n, num_classes]`. The features are
      standardized by all examples, which uses no label.
    """
    standardized, _, _ = _standardize(features)
    problem = _Problem(standardized, num_classes, example_weights, stop)
    logits = np.zeros([len(folds), num_classes], np.float32)
    tolerance = _ROUGH_TOLERANCE if is_rough else _TOLERANCE
    for fold in np.unique(folds):
        left_out = folds == fold
        # From zero: the head of another fold has seen these examples, and with
        # a weak decay it would hardly change.
        solution = problem.solve(~left_out, weight_decay, tolerance)
        x = solution.x.reshape(-1, num_classes).astype(np.float32)
        logits[left_out] = standardized.values[0, left_out] @ x[:-1] + x[-1]
    return logits


def _standardize(
    features: Features,
) -> tuple[Features, np.ndarray, np.ndarray]:
    """Returns standardized features, their mean and their spread."""
    mean, spread = classifier.mean_and_spread(features.values)
    values = features.values - mean.astype(np.float32)
    values /= spread.astype(np.float32)
    return Features(values, features.labels), mean, spread


def _cross_validate(
    problem: _Problem, held_out: list[np.ndarray]
) -> dict[float, float]:
    """Returns the mean held-out loss over all folds for each weight decay.

    Stops when the loss rises: decays weaker than the best one take ever longer
    to fit.
    """
    losses: dict[float, float] = {}
    starts: list[np.ndarray | None] = [None] * len(held_out)
    for decay in DECAYS:
        total = 0.0
        for k, fold in enumerate(held_out):
            solution = problem.solve(~fold, decay, _ROUGH_TOLERANCE, starts[k])
            starts[k] = solution.x
            total += problem.loss(solution.x, fold)
        losses[decay] = total / len(held_out)
        if losses[decay] > min(losses.values()):
            break
    return losses


def _stratified_folds(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Returns the examples that each fold holds out, as masks bool `[n]`.

    Each fold holds the same share of every class. There are as many folds as
    the smallest class has examples, but no more than 5. A class with a single
    example is ignored here and never held out; if all classes are like that,
    there are no folds.
    """
    counts = np.bincount(labels)
    repeated = counts[labels] > 1
    if not repeated.any():
        return []
    num_folds = min(_FOLDS, counts[counts > 1].min())
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    position = np.argsort(order)
    return [
        (position % num_folds == fold) & repeated for fold in range(num_folds)
    ]


class _Problem:
    """The loss over subsets of the examples, and its gradient, on the device.

    The parameters `x`, `[(channels + 1) * num_classes]`, are the flattened
    kernel followed by the bias.
    """

    def __init__(
        self,
        features: Features,
        num_classes: int,
        example_weights: np.ndarray | None,
        stop: StopRequest | None,
    ):
        self._num_views, num_examples, channels = features.values.shape
        if example_weights is None:
            example_weights = np.ones(num_examples, np.float32)
        self._weights, self._stop = example_weights, stop or StopRequest()
        self._shape = (channels + 1, num_classes)
        # The rows are the views of the examples, view by view.
        self._rows = tf.constant(features.values.reshape(-1, channels))
        self._targets = tf.constant(np.tile(features.labels, self._num_views))

    def solve(
        self,
        selected: np.ndarray,
        decay: float,
        tolerance: float,
        start: np.ndarray | None = None,
    ) -> scipy.optimize.OptimizeResult:
        """Minimizes the loss of the selected examples, bool `[n]`."""
        return scipy.optimize.minimize(
            self._loss_and_gradient,
            np.zeros(self._shape).ravel() if start is None else start,
            args=(self._row_weights(selected), decay),
            jac=True,
            method="L-BFGS-B",
            options={
                "gtol": tolerance,
                # Smaller changes of the loss are lost in float32's rounding.
                "ftol": 1e-9,
                "maxiter": _MAX_ITERATIONS,
            },
        )

    def loss(self, x: np.ndarray, selected: np.ndarray) -> float:
        """Returns the mean cross-entropy of the selected examples, in nats."""
        return self._loss_and_gradient(x, self._row_weights(selected), 0.0)[0]

    def _row_weights(self, selected: np.ndarray) -> tf.Tensor:
        weights = np.tile(self._weights * selected, self._num_views)
        return tf.constant(weights / weights.sum(), tf.float32)

    def _loss_and_gradient(
        self, x: np.ndarray, weights: tf.Tensor, decay: float
    ) -> tuple[float, np.ndarray]:
        self._stop.alive()
        loss, gradient = _compute(
            tf.constant(x, tf.float32),
            self._rows,
            self._targets,
            weights,
            tf.constant(decay),
        )
        return float(loss), gradient.numpy()


# Outside the class: the heads of many subsets share what TensorFlow traces.
@tf.function(reduce_retracing=True)
def _compute(
    x: tf.Tensor,
    rows: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    decay: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss and its gradient; see `_Problem`."""
    parameters = tf.reshape(x, [tf.shape(rows)[1] + 1, -1])
    kernel, bias = parameters[:-1], parameters[-1]
    logits = rows @ kernel + bias
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    loss = tf.tensordot(weights, losses, 1)
    loss += 0.5 * decay * tf.reduce_sum(tf.square(kernel))
    one_hot = tf.one_hot(targets, tf.shape(logits)[1])
    errors = (tf.nn.softmax(logits) - one_hot) * weights[:, tf.newaxis]
    kernel_gradient = tf.matmul(rows, errors, transpose_a=True)
    kernel_gradient += decay * kernel
    bias_gradient = tf.reduce_sum(errors, axis=0, keepdims=True)
    gradient = tf.concat([kernel_gradient, bias_gradient], axis=0)
    return loss, tf.reshape(gradient, [-1])
