"""What lets one trust an answer: "none of these", and sets of classes.

A `Trust` is fitted once, at the end of a training stage, and saved with the
model. `answer` computes its outputs with TensorFlow operations, so that the
program and every exported format give the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata.scoring import calibration, conformal

# The covariance within classes is estimated in this many directions, those in
# which it is largest; in all others it is the ridge, this share of the mean
# variance. More directions changed nothing.
_DIRECTIONS = 64
_RIDGE = 0.3
# The least ridge, as a share of the variance of all images.
_LEAST_RIDGE = 0.003


class Surroundings(NamedTuple):
    """Where the features of the training images are: one Gaussian per class.

    All classes share the covariance. Features are mapped to u = sign(f) *
    sqrt(|f|), scaled to length sqrt(channels) (J. Mueller and M. Hein,
    "Mahalanobis++", 2025, for the scaling), minus `mean`.

    Attributes:
      mean: float32 `[channels]`, of all images.
      directions: float32 `[channels, directions]`, orthonormal.
      damping: float32 `[directions]`. The precision matrix is P = I / ridge -
        directions * diag(damping) * directions^T.
      ridge: the variance in all other directions.
      kernel: float32 `[channels, classes]`, 2 P times the classes' means.
      bias: float32 `[classes]`, minus the square length of the means under P.
    """

    mean: np.ndarray
    directions: np.ndarray
    damping: np.ndarray
    ridge: float
    kernel: np.ndarray
    bias: np.ndarray

    def distances(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how far features are from the training images.

        Args:
          features: float32 `[n, channels]`.

        Returns:
          Both float32 `[n]`: the squared Mahalanobis distance to the nearest
          class (K. Lee et al., "A simple unified framework for detecting
          out-of-distribution samples and adversarial attacks", 2018), and that
          minus the distance to the mean of all images (J. Ren et al., "A simple
          fix to Mahalanobis distance for improving near-OOD detection", 2021).
        """
        u = _normalized(features) - self.mean
        along = tf.square(u @ self.directions)
        to_mean = tf.reduce_sum(tf.square(u), axis=1) / self.ridge
        to_mean -= tf.reduce_sum(along * self.damping, axis=1)
        relative = -tf.reduce_max(u @ self.kernel + self.bias, axis=1)
        return to_mean + relative, relative


class Trust(NamedTuple):
    """What was fitted on images that a model was not trained on.

    Attributes:
      temperature: the number that the model's logits were divided by. It is in
        the weights of the last layer.
      surroundings: where the training images are.
      centres: float32 `[3]`, the means of the three terms of `score`.
      scales: float32 `[3]`, their standard deviations.
      trained_centres: the same as `centres`, of images it was trained on.
      trained_scales: the same as `scales`, of images it was trained on.
      unknown_above: a picture with a larger score is unknown. 5 % of pictures
        like those it was fitted on have one, or fewer.
      sets: the thresholds of the sets of classes.
      num_examples: the number of images it was fitted on.
      loss: the mean cross-entropy of the calibrated model on images that were
        held out, nats.
    """

    temperature: float
    surroundings: Surroundings
    centres: np.ndarray
    scales: np.ndarray
    trained_centres: np.ndarray
    trained_scales: np.ndarray
    unknown_above: float
    sets: conformal.SetThresholds
    num_examples: int
    loss: float

    def score(self, logits: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """Returns how unlike the training images pictures are, float32 `[n]`.

        It is the sum of three terms: minus the margin between the two largest
        logits, and the two `Surroundings.distances`. Each is taken minus its
        mean and divided by its standard deviation on images that the model was
        not trained on. So the score is about 0 for an ordinary picture, in
        units of standard deviations. The weights are equal, since fitted ones
        were no better: docs/trust.md has the measurements.

        Args:
          logits: float32 `[n, num_classes]`, of the calibrated model.
          features: float32 `[n, channels]`, the input of the head.
        """
        terms = _terms(self.surroundings, logits, features)
        return tf.reduce_sum((terms - self.centres) / self.scales, axis=1)

    def with_temperature(
        self,
        temperature: float,
        sets: conformal.SetThresholds,
        num_examples: int,
    ) -> Trust:
        """Returns the same with another temperature and other sets.

        Margins are in units of the divided logits, so those of the score are
        converted.
        """
        factor = np.array([self.temperature / temperature, 1, 1], np.float32)
        return self._replace(
            temperature=temperature,
            centres=factor * self.centres,
            scales=factor * self.scales,
            trained_centres=factor * self.trained_centres,
            trained_scales=factor * self.trained_scales,
            sets=sets,
            num_examples=num_examples,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns all numbers by name; `from_arrays` undoes it."""
        rest = self._asdict()
        surroundings, sets = rest.pop("surroundings"), rest.pop("sets")
        parts = {**rest, **surroundings._asdict(), **sets._asdict()}
        return {name: np.asarray(value) for name, value in parts.items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Trust:
    """Returns what `Trust.to_arrays` was called on.

    Raises:
      KeyError: a number is missing.
    """
    values: dict[str, Any] = {
        name: value.item() if value.ndim == 0 else value
        for name, value in arrays.items()
    }

    def pick(names: tuple[str, ...]) -> list[Any]:
        return [values[name] for name in names]

    values["surroundings"] = Surroundings(*pick(Surroundings._fields))
    values["sets"] = conformal.SetThresholds(
        *pick(conformal.SetThresholds._fields)
    )
    return Trust(*pick(Trust._fields))


def answer(
    logits: tf.Tensor, features: tf.Tensor, trust: Trust | None
) -> dict[str, tf.Tensor]:
    """Returns the answers of a model.

    Args:
      logits: float32 `[n, num_classes]`.
      features: float32 `[n, channels]`, the input of the head.
      trust: what was saved with the model, if anything.

    Returns:
      `probabilities`, float32 `[n, num_classes]`; with `trust` also
      `unknown_score`, float32 `[n]`, see `Trust.score`; `unknown`, bool `[n]`,
      whether the picture seems to show none of the classes; `classes_at_95`,
      bool `[n, num_classes]`, whether each class is in the set that holds the
      right one in 95 % of cases, see `conformal.SetThresholds`.
    """
    probabilities = tf.nn.softmax(logits)
    answers = {"probabilities": probabilities}
    if trust is None:
        return answers
    score = trust.score(logits, features)
    largest = tf.reduce_max(probabilities, axis=1, keepdims=True)
    least = tf.where(
        largest >= trust.sets.certain_from,
        trust.sets.certain,
        trust.sets.uncertain,
    )
    # The most likely class is always in it.
    members = probabilities >= tf.minimum(least, largest)
    return answers | {
        "unknown_score": score,
        "unknown": score > trust.unknown_above,
        "classes_at_95": members,
    }


def fit_surroundings(
    features: np.ndarray, labels: np.ndarray, num_classes: int
) -> Surroundings:
    """Describes where the features of the training images are.

    Args:
      features: float32 `[views, n, channels]`.
      labels: int64 `[n]`.
      num_classes: number of classes of the data set. A class without images is
        left out.
    """
    views, num_examples, channels = features.shape
    present = [c for c in range(num_classes) if (labels == c).any()]
    # One view at a time: float64 copies of all may not fit into memory.
    sums = np.zeros([len(present), channels])
    squares = np.zeros([channels, channels])
    for view in features:
        u = _normalized(view).numpy().astype(np.float64)
        squares += u.T @ u
        sums += np.stack([u[labels == c].sum(axis=0) for c in present])
    counts = views * np.array([(labels == c).sum() for c in present])
    mean = sums.sum(axis=0) / (views * num_examples)
    means = sums / counts[:, np.newaxis] - mean
    total = squares / counts.sum() - np.outer(mean, mean)
    covariance = total - (means.T * (counts / counts.sum())) @ means
    variances, directions = np.linalg.eigh(covariance)
    # A single image of each class has no variance within classes.
    least = _LEAST_RIDGE * np.trace(total) / channels
    ridge = max(_RIDGE * variances.mean(), least, 1e-6)
    variances = np.maximum(variances[-_DIRECTIONS:], 0)
    directions = directions[:, -_DIRECTIONS:]
    damping = 1 / ridge - 1 / (variances + ridge)
    along = (means @ directions) * damping
    precise = means / ridge - along @ directions.T
    arrays = mean, directions, damping
    mean, directions, damping = (x.astype(np.float32) for x in arrays)
    kernel = (2 * precise.T).astype(np.float32)
    bias = -(means * precise).sum(axis=1).astype(np.float32)
    return Surroundings(mean, directions, damping, float(ridge), kernel, bias)


def fit(
    surroundings: Surroundings,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Trust:
    """Fits temperature, score and thresholds.

    Args:
      surroundings: where the training images are.
      train: logits float32 `[n, num_classes]` and features float32 `[n,
        channels]` of images that the model was trained on.
      held_out: logits, features and labels (int64 `[m]`) of images that it was
        not trained on; m >= 1 and two classes or more.
    """
    logits, features, labels = held_out
    temperature = calibration.fit_temperature(logits, labels)
    logits = logits / np.float32(temperature)
    terms = _terms(surroundings, logits, features).numpy()
    trained = _terms(
        surroundings, train[0] / np.float32(temperature), train[1]
    ).numpy()
    centres, scales = _centres_and_scales(terms)
    scores = ((terms - centres) / scales).sum(axis=1)
    return Trust(
        temperature,
        surroundings,
        centres,
        scales,
        *_centres_and_scales(trained),
        conformal.upper_limit(scores),
        conformal.fit_sets(tf.nn.softmax(logits).numpy(), labels),
        len(labels),
        float(
            tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        ),
    )


def after_refit(
    before: Trust,
    surroundings: Surroundings,
    logits: np.ndarray,
    features: np.ndarray,
) -> Trust:
    """Adapts what was fitted to a model that is trained on all images.

    No image is left to fit anything on. The temperature and the thresholds are
    those of the model before. The terms of new images are assumed to differ
    from those of training images as they did before.

    Args:
      before: what was fitted to the model that was trained without the
        validation images.
      surroundings: where the training images of the new model are.
      logits: float32 `[n, num_classes]`, of images that the new model was
        trained on, before they are divided by the temperature.
      features: float32 `[n, channels]`, of the same images.
    """
    logits = logits / np.float32(before.temperature)
    terms = _terms(surroundings, logits, features).numpy()
    centres, scales = _centres_and_scales(terms)
    ratio = scales / before.trained_scales
    return before._replace(
        surroundings=surroundings,
        centres=centres + ratio * (before.centres - before.trained_centres),
        scales=ratio * before.scales,
        trained_centres=centres,
        trained_scales=scales,
    )


def _terms(
    surroundings: Surroundings, logits: tf.Tensor, features: tf.Tensor
) -> tf.Tensor:
    two, _ = tf.math.top_k(logits, 2)
    distances = surroundings.distances(features)
    return tf.stack([two[:, 1] - two[:, 0], *distances], axis=1)


def _centres_and_scales(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centres, scales = terms.mean(axis=0), terms.std(axis=0)
    # A few images may happen to have no spread.
    least = np.maximum(0.01 * np.abs(centres), np.float32(1e-3))
    return centres, np.maximum(scales, least)


def _normalized(features: tf.Tensor) -> tf.Tensor:
    """Returns sign(f) * sqrt(|f|), scaled to length sqrt(channels)."""
    u = tf.sign(features) * tf.sqrt(tf.abs(features))
    return tf.math.l2_normalize(u, axis=1) * float(features.shape[1]) ** 0.5
