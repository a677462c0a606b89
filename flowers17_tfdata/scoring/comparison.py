"""Statistics of a paired comparison: is one recipe better, or lucky?

Both recipes have classified the same images, so each image is its own control:
only images that one recipe gets right and the other wrong carry information. An
image that several pairs of runs share (the test splits of different seeds
overlap) is one cluster: it is resampled, or its sign flipped, together with all
its predictions. The result holds for the given runs; only more runs show
whether training with another seed would give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from flowers17_tfdata.scoring.scores import wilson_interval

NUM_RESAMPLES = 10_000
# A smaller p-value means that the difference is not due to chance.
_LEVEL = 0.05


class PairedAnswers(NamedTuple):
    """Which examples of one split two runs classify correctly.

    Attributes:
      ids: the examples' ids, `[n]`, unique.
      compared: bool `[n]`, whether the compared run is correct.
      baseline: bool `[n]`, whether the baseline is correct.
    """

    ids: tuple[str, ...]
    compared: np.ndarray
    baseline: np.ndarray


def mcnemar_p(only_compared: int, only_baseline: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test.

    If neither were better, each would be the right one with probability 1/2 on
    an image that only one of them gets right. Q. McNemar, "Note on the sampling
    error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947); T. G. Dietterich, Neural Computation 10 (1998),
    recommends it for two classifiers that are trained once.

    Args:
      only_compared: the number of images that only the compared run gets right.
      only_baseline: the number of images that only the baseline gets right.
    """
    total = only_compared + only_baseline
    return float(stats.binomtest(only_compared, total).pvalue) if total else 1.0


def sign_flip_p(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of the sign-flip permutation test.

    If neither were better, swapping the two on one image, in all pairs that
    share it, would change nothing: each sign is a coin toss, all 2^clusters
    combinations are equally likely, and the sum's distance from 0 is compared
    with theirs. R. A. Fisher, "The Design of Experiments" (1935), section 21;
    P. Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses" (2005).

    The distribution is exact, because the differences are small integers: it is
    a convolution of binomials, one for each size. If every difference is -1, 0
    or 1, as in a single pair, the test is `mcnemar_p`.

    Args:
      differences: int `[clusters]`, for each image the number of compared runs
        that get it right, minus the number of baselines that do.
    """
    sizes, counts = np.unique(
        np.abs(differences[differences != 0]), return_counts=True
    )
    # chances[k] is the probability of the sum 2 * k - reach, where reach is the
    # largest sum of the sizes added so far.
    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        coins = np.zeros(size * count + 1)
        coins[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, coins)
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    as_far = np.abs(sums) >= abs(int(differences.sum()))
    # Rounding may give slightly more than 1.
    return min(1.0, float(chances[as_far].sum()))


def bootstrap_interval(
    differences: np.ndarray, counts: np.ndarray, seed: int
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the difference in accuracy.

    Clusters are resampled with replacement, `NUM_RESAMPLES` times. B. Efron,
    "Bootstrap methods: another look at the jackknife", Annals of Statistics 7
    (1979); for clusters: A. C. Davison and D. V. Hinkley, "Bootstrap Methods
    and their Application" (1997), section 3.8; C. A. Field and A. H. Welsh,
    "Bootstrapping clustered data", JRSS B 69 (2007).

    If the two never differ, resampling shows no spread at all. Then each limit
    is the greatest share of images on which one of them is better that would go
    unseen with a probability of 2.5 %: C. J. Clopper and E. S. Pearson, "The
    use of confidence or fiducial limits", Biometrika 26 (1934).

    Args:
      differences: int `[clusters]`, as in `sign_flip_p`.
      counts: int `[clusters]`, the number of pairs that contain the image, at
        least 1.
      seed: the seed of the resampling.
    """
    if not differences.any():
        limit = 1 - 0.025 ** (1 / len(differences))
        return -limit, limit
    # Equal clusters are interchangeable, so the number of draws of each kind is
    # multinomial, and there are only a few kinds.
    kinds, sizes = np.unique(
        np.stack([differences, counts], axis=1), axis=0, return_counts=True
    )
    total = sizes.sum()
    draws = np.random.default_rng(seed).multinomial(
        total, sizes / total, size=NUM_RESAMPLES
    )
    sums = draws @ kinds
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)


def cluster(pairs: Sequence[PairedAnswers]) -> tuple[np.ndarray, np.ndarray]:
    """Returns each image's summed difference and number of pairs.

    Both are int64 `[distinct ids]`, in the order of the sorted ids.
    """
    ids = np.concatenate([pair.ids for pair in pairs])
    per_answer = np.concatenate(
        [p.compared.astype(int) - p.baseline for p in pairs]
    )
    _, index = np.unique(ids, return_inverse=True)
    differences = np.bincount(index, weights=per_answer)
    return differences.astype(np.int64), np.bincount(index)


def summarize_pair(pair: PairedAnswers, seed: int) -> dict[str, Any]:
    """Returns the figures of one pair of runs.

    These are the figures of `summarize_all`, with McNemar's p-value, and the
    Wilson intervals of both accuracies.
    """
    total = len(pair.ids)
    figures = summarize_all([pair], seed)
    right = {"compare": pair.compared, "baseline": pair.baseline}
    for name, is_right in right.items():
        interval = wilson_interval(int(is_right.sum()), total)
        figures[f"{name}_interval"] = list(interval)
    figures["p_value"] = mcnemar_p(
        figures["only_compare_right"], figures["only_baseline_right"]
    )
    return figures


def summarize_all(pairs: Sequence[PairedAnswers], seed: int) -> dict[str, Any]:
    """Returns the pooled figures of all pairs of runs.

    Every answer has the same weight. There is no Wilson interval: it would
    treat the answers to one image as independent.

    Args:
      pairs: at least one, of at least one example.
      seed: the seed of the bootstrap.

    Returns:
      `num_examples` (answers of each side), `num_images` (distinct),
      `compare_accuracy`, `baseline_accuracy`, `difference` (of the
      accuracies), `difference_interval`, `only_compare_right`,
      `only_baseline_right`, `p_value` (of `sign_flip_p`), `beyond_chance`.
    """
    compared = np.concatenate([p.compared for p in pairs])
    baseline = np.concatenate([p.baseline for p in pairs])
    differences, counts = cluster(pairs)
    low, high = bootstrap_interval(differences, counts, seed)
    p_value = sign_flip_p(differences)
    return {
        "num_examples": len(compared),
        "num_images": len(counts),
        "compare_accuracy": float(compared.mean()),
        "baseline_accuracy": float(baseline.mean()),
        "difference": float(differences.sum() / counts.sum()),
        "difference_interval": [low, high],
        "only_compare_right": int((compared & ~baseline).sum()),
        "only_baseline_right": int((baseline & ~compared).sum()),
        "p_value": p_value,
        # Both are required, because near the threshold they may disagree.
        "beyond_chance": p_value < _LEVEL and not low <= 0 <= high,
    }
