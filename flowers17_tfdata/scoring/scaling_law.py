"""How the error falls with the number of photographs, and where that leads.

The law is `error(n) = a * ((1 - floor) * (n / n_max) ** -b + floor)`, with b
from 0 to 1 and n_max the largest number that was tried: J. Hestness et al.,
"Deep learning scaling is predictable, empirically" (2017,
https://arxiv.org/abs/1712.00409); J. Rosenfeld et al., "A constructive
prediction of the generalization error across scales" (ICLR 2020,
https://arxiv.org/abs/1909.12673); R. Mahmood et al., "How much more data do I
need?" (CVPR 2022, https://arxiv.org/abs/2207.01725), who compare such laws.

The same images are judged at every size, so the sizes share their luck. All
intervals are therefore from one bootstrap over groups of images and over
repeats (the subsets that were drawn), with a law fitted to each replicate.

Measured on Oxford Flowers-17 with MobileNet's features, ten pools of each size,
against the accuracy of heads fitted to 2 and 4 times as many images, on images
left out (30 heads of each size, all 1360 images):

    pool        truth within the interval of    median width, points
                2 times      4 times            2 times      4 times
    132         8 of 10      8 of 10            9.7          9.9
    265         10 of 10     10 of 10           4.5          4.1
    530         10 of 10                        3.5

The floor, an error that no photograph removes, is always fitted: without it the
truth was within only 9, 8 (pool of 265) and 7 (530) of 10 intervals. In pools
of 530, a class has some 30 images. Which classes gain most could not be told:
predicted and true gains had a correlation of 0.2. So `most_wanted` asks for
certainty.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000
# The photographs of the predictions, as multiples of those there are.
TIMES = (1, 2, 4)

# No rate above 1 is known for a classifier's error, in theory or in practice.
_EXPONENTS = np.linspace(0, 1, 41)
_FLOORS = np.linspace(0, 0.9, 19)
# With fewer wrong images at the smallest size there is no curve to speak of.
_LEAST_WRONG = 10
# How much classes are alike before any is judged, as a number of wrong images:
# the shape of the gamma distribution of a class's error over the common one.
_ALIKE = 1.0
# A class is wanted if it gains more than the mean class, with this probability.
_SURE = 0.9
_MOST_WANTED = 3


class Judged(NamedTuple):
    """The answers of heads that were fitted to more and more images.

    Attributes:
      wrong: bool `[repeats, sizes, n]`, whether the head of this repeat and
        size, which was not fitted to the image, got it wrong.
      sizes: float64 `[sizes]`, the mean number of images of a fit, rising.
      labels: int64 `[n]`, the class of each image.
      groups: int64 `[n]`, the group of each image.
    """

    wrong: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


class _Law(NamedTuple):
    """The laws of the B replicates: float64 `[B]` each.

    `error` is that at the largest size, `largest`.
    """

    error: np.ndarray
    exponent: np.ndarray
    floor: np.ndarray
    largest: float

    def at(self, num_images: float) -> np.ndarray:
        """Returns the error of each replicate, `[B]`, in [0, 1]."""
        share = (num_images / self.largest) ** -self.exponent
        error = self.error * ((1 - self.floor) * share + self.floor)
        return np.minimum(error, 1)


class _Resampled(NamedTuple):
    """The numbers of images in B replicates; the first is the data itself.

    Attributes:
      wrong: float64 `[B, sizes, classes]`, the wrong ones, mean over repeats.
      judged: float64 `[B, classes]`.
    """

    wrong: np.ndarray
    judged: np.ndarray


def most_wrong(wrong: float, total: int) -> float:
    """Returns the largest error that few wrong images leave plausible.

    The one-sided 95 % limit of C. J. Clopper and E. S. Pearson, Biometrika 26
    (1934); without a wrong image `1 - 0.05 ** (1 / total)`, in [0, 1].

    Args:
      wrong: the number of wrong images; a mean is rounded up.
      total: the number of independent images.
    """
    count = math.ceil(wrong)
    if count >= total:
        return 1.0
    return float(stats.beta.ppf(0.95, count + 1, total - count))


def summarize(
    judged: Judged, num_images: int, class_counts: np.ndarray, seed: int
) -> dict[str, Any]:
    """Returns the curve, the law, the predictions and what each class gains.

    Args:
      judged: the answers; at least one image.
      num_images: the number of images that the model is trained on now.
      class_counts: int64 `[classes]`, those of each class.
      seed: the seed of the bootstrap.

    Returns:
      `curve`: for each size `num_images`, `accuracy`, `accuracy_interval`;
      `num_judged`, `num_groups`, `num_wrong` (at the largest size, the mean
        over repeats);
      `most_wrong`: the largest error that these leave plausible;
      `law`: `num_images`, the largest size, `error` there, `exponent` and
        `floor`, as a share of that error; None if too few images are wrong;
      `predictions`: for each of `TIMES` `times`, `num_images`, `accuracy`,
        `accuracy_interval`, and `gain` and `gain_interval` over now; [] without
        a law;
      `classes`: for each class None if it was not judged, or else
        `num_images`, `num_judged`, and with a law `recall` and
        `recall_interval` (now), `twice` and `twice_interval` (with twice the
        photographs), `gain_per_photograph`, in recall;
      `most_wanted`: the numbers of the classes that surely gain more per
        photograph than the mean class, the first gains most.
    """
    rng = np.random.default_rng(seed)
    resampled = _resample(judged, len(class_counts), rng)
    wrong = resampled.wrong.sum(axis=2)
    totals = resampled.judged.sum(axis=1)
    num_groups = len(np.unique(judged.groups))
    counts: dict[str, Any] = {
        "curve": [
            {
                "num_images": float(size),
                **_judged_accuracy(wrong[:, k], totals, num_groups),
            }
            for k, size in enumerate(judged.sizes)
        ],
        "num_judged": len(judged.labels),
        "num_groups": num_groups,
        "num_wrong": float(wrong[0, -1]),
        "most_wrong": most_wrong(wrong[0, -1], num_groups),
    }
    classes = [
        {"num_images": int(count), "num_judged": int(total)} if total else None
        for count, total in zip(class_counts, resampled.judged[0], strict=True)
    ]
    if wrong[0, 0] < _LEAST_WRONG:
        return counts | {
            "law": None,
            "predictions": [],
            "classes": classes,
            "most_wanted": [],
        }
    law = _fit(wrong, totals, judged.sizes)
    per_class = _class_errors(resampled, law, judged.sizes, rng)
    return counts | {
        "law": {
            "num_images": law.largest,
            "error": float(law.error[0]),
            "exponent": float(law.exponent[0]),
            "floor": float(law.floor[0]),
        },
        "predictions": [
            _no_surer(prediction, counts["curve"][-1], wrong[0, -1])
            for prediction in _predict(law, num_images)
        ],
        **_gains(law, num_images, per_class, classes),
    }


def _resample(
    judged: Judged, num_classes: int, rng: np.random.Generator
) -> _Resampled:
    num_repeats, num_sizes, _ = judged.wrong.shape
    _, group = np.unique(judged.groups, return_inverse=True)
    num_groups = group.max() + 1
    # How often a replicate holds each group, and each repeat.
    images, repeats = (
        np.concatenate(
            [np.ones([1, n]), rng.multinomial(n, np.full(n, 1 / n), draws)]
        )
        for n, draws in (
            (num_groups, NUM_RESAMPLES),
            (num_repeats, NUM_RESAMPLES),
        )
    )
    wrong = np.zeros([len(images), num_sizes, num_classes])
    total = np.zeros([len(images), num_classes])
    for label in np.unique(judged.labels):
        chosen = judged.labels == label
        held = images[:, group[chosen]]
        total[:, label] = held.sum(axis=1)
        for size in range(num_sizes):
            of_repeats = held @ judged.wrong[:, size, chosen].T
            sums = (of_repeats * repeats).sum(axis=1)
            wrong[:, size, label] = sums / num_repeats
    return _Resampled(wrong, total)


def _fit(wrong: np.ndarray, totals: np.ndarray, sizes: np.ndarray) -> _Law:
    """Returns the most likely laws of Poisson counts, on a grid.

    A size without a wrong image has a likelihood, too, unlike a logarithm.

    Args:
      wrong: float64 `[B, sizes]`, the number of wrong images.
      totals: float64 `[B]`, the number of images.
      sizes: float64 `[sizes]`.
    """
    exponents, floors = (x.ravel() for x in np.meshgrid(_EXPONENTS, _FLOORS))
    # The error at each size, over the error at the largest one: [laws, sizes].
    relative = (sizes / sizes[-1]) ** -exponents[:, np.newaxis]
    relative = floors[:, np.newaxis] + (1 - floors[:, np.newaxis]) * relative
    # For a given shape, the most likely scale needs no search.
    sums, shapes = wrong.sum(axis=1, keepdims=True), relative.sum(axis=1)
    likelihood = wrong @ np.log(relative).T - sums * np.log(shapes)
    best = likelihood.argmax(axis=1)
    error = sums[:, 0] / shapes[best] / totals
    return _Law(error, exponents[best], floors[best], float(sizes[-1]))


def _class_errors(
    resampled: _Resampled,
    law: _Law,
    sizes: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns how much more often a class is wrong than all, `[B, classes]`.

    A class has few images, so its factor is drawn from its posterior, whose
    prior is a gamma distribution with mean 1. All sizes count, but together
    only as much as one, because they judge the same images. The first row holds
    the means; a class without images keeps the prior.
    """
    expected = np.mean([law.at(size) for size in sizes], axis=0)
    expected = resampled.judged * expected[:, np.newaxis] + _ALIKE
    wrong = resampled.wrong.mean(axis=1) + _ALIKE
    factors = rng.gamma(wrong, 1 / expected)
    factors[0] = wrong[0] / expected[0]
    return factors


def _predict(law: _Law, num_images: int) -> list[dict[str, Any]]:
    now = law.at(num_images)
    rows = []
    for times in TIMES:
        error = law.at(times * num_images)
        rows.append(
            {
                "times": times,
                "num_images": times * num_images,
                **_accuracy(error),
                "gain": float(now[0] - error[0]),
                "gain_interval": _interval(now - error),
            }
        )
    return rows


def _no_surer(
    prediction: dict[str, Any], largest: dict[str, Any], num_wrong: float
) -> dict[str, Any]:
    """Widens a prediction that rests on few wrong images.

    Resampling so few shows too little spread, as in `_judged_accuracy`.
    """
    if num_wrong >= _LEAST_WRONG:
        return prediction
    low, high = prediction["accuracy_interval"]
    least, most = largest["accuracy_interval"]
    return prediction | {
        "accuracy_interval": [min(low, least), max(high, most)]
    }


def _gains(
    law: _Law,
    num_images: int,
    factors: np.ndarray,
    classes: list[dict[str, Any] | None],
) -> dict[str, Any]:
    """Adds what each class gains from twice the photographs.

    The heads were fitted to more images of all classes at once, so a class's
    gain is that of twice the photographs of all.
    """
    known = {k: record for k, record in enumerate(classes) if record}
    told = list(known)
    now, twice = (
        np.minimum(law.at(n)[:, np.newaxis] * factors[:, told], 1)
        for n in (num_images, 2 * num_images)
    )
    gains = (now - twice) / [c["num_images"] for c in known.values()]
    above = gains > gains.mean(axis=1, keepdims=True)
    sure = above[1:].mean(axis=0) >= _SURE
    order = np.argsort(-gains[0], kind="stable")
    wanted = [told[k] for k in order if sure[k]][:_MOST_WANTED]
    for k, record in enumerate(known.values()):
        record |= {
            **_accuracy(now[:, k], "recall"),
            **_accuracy(twice[:, k], "twice"),
            "gain_per_photograph": float(gains[0, k]),
        }
    return {"classes": classes, "most_wanted": wanted}


def _judged_accuracy(
    wrong: np.ndarray, totals: np.ndarray, num_groups: int
) -> dict[str, Any]:
    """Returns the accuracy at one size; `wrong` and `totals` are `[B]`."""
    result = _accuracy(wrong / totals)
    if wrong[0] < _LEAST_WRONG:
        # Resampling so few shows too little spread, and none of no wrong image.
        low, high = result["accuracy_interval"]
        low = min(low, 1 - most_wrong(wrong[0], num_groups))
        result["accuracy_interval"] = [low, high]
    return result


def _accuracy(error: np.ndarray, name: str = "accuracy") -> dict[str, Any]:
    """Returns `1 - error` of the data, the first entry, and its interval."""
    right = 1 - error
    return {name: float(right[0]), f"{name}_interval": _interval(right)}


def _interval(values: np.ndarray) -> list[float]:
    """Returns the 95 % percentile interval of the replicates."""
    return [float(x) for x in np.percentile(values[1:], [2.5, 97.5])]
