"""Is one recipe better than another, or lucky?

Both have answered the same images, so each image is its own control: images
that both get right, or both wrong, say nothing, and what is left is counted.
An image that several pairs of runs share (test splits of other seeds overlap)
is one piece of evidence, not several: it is resampled, or its sign flipped,
with all that was said of it. All of it is of the runs at hand; that trainings
of another seed would do alike, only more runs tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from flowers17_tfdata.scoring.scores import wilson_interval

NUM_RESAMPLES = 10_000
# Below this the difference is more than chance.
LEVEL = 0.05


class PairedAnswers(NamedTuple):
    """Which examples of one split two runs get right.

    Attributes:
      ids: the examples' ids, `[n]`, each once.
      compared: bool `[n]`, the one run is right.
      baseline: bool `[n]`, the other one is.
    """

    ids: tuple[str, ...]
    compared: np.ndarray
    baseline: np.ndarray


def mcnemar_p(only_compared: int, only_baseline: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test.

    If neither were better, an image that one alone gets right would be either
    one's with probability 1/2. Q. McNemar, "Note on the sampling error of the
    difference between correlated proportions or percentages", Psychometrika
    12 (1947); T. G. Dietterich, Neural Computation 10 (1998), recommends it
    for two classifiers that are trained once.

    Args:
      only_compared: number of images that the one alone gets right.
      only_baseline: number of those that the other one does.
    """
    total = only_compared + only_baseline
    if not total:
        return 1.0
    return float(stats.binomtest(only_compared, total).pvalue)


def sign_flip_p(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of the sign-flip permutation test.

    If neither were better, swapping the two on one image, in all pairs that
    share it, would change nothing: each sign is a coin, all 2^clusters of them
    are equally likely, and the sum's distance from 0 is compared with theirs.
    R. A. Fisher, "The Design of Experiments" (1935), section 21; P. Good,
    "Permutation, Parametric and Bootstrap Tests of Hypotheses" (2005).

    The distribution is exact, as the differences are small integers: a
    convolution of binomials, one for each size. Where every difference is
    -1, 0 or 1, as in one pair, this is `mcnemar_p`.

    Args:
      differences: int `[clusters]`, how many more of an image's answers are
        right by the one than by the other.
    """
    sizes, counts = np.unique(
        np.abs(differences[differences != 0]), return_counts=True
    )
    # chances[k] of the sum 2 * k - reach, as each size is added to the reach.
    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        coins = np.zeros(size * count + 1)
        coins[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, coins)
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    as_far = np.abs(sums) >= abs(int(differences.sum()))
    # Rounding may leave all of it a hair above 1.
    return min(1.0, float(chances[as_far].sum()))


def bootstrap_interval(
    differences: np.ndarray, counts: np.ndarray, seed: int
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the difference in accuracy.

    Clusters are resampled with replacement, `NUM_RESAMPLES` times. B. Efron,
    "Bootstrap methods: another look at the jackknife", Annals of Statistics 7
    (1979); of clusters: A. C. Davison and D. V. Hinkley, "Bootstrap Methods
    and their Application" (1997), section 3.8; C. A. Field and A. H. Welsh,
    "Bootstrapping clustered data", JRSS B 69 (2007).

    Args:
      differences: int `[clusters]`, as in `sign_flip_p`.
      counts: int `[clusters]`, the answers to each image by either, above 0.
      seed: of the draws.
    """
    # Clusters alike are interchangeable: how often each kind is drawn is
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
    """Returns each image's summed difference and number of answers.

    Both int64 `[distinct ids]`.
    """
    ids = [example for pair in pairs for example in pair.ids]
    position = {example: k for k, example in enumerate(dict.fromkeys(ids))}
    index = np.array([position[example] for example in ids])
    per_answer = np.concatenate(
        [p.compared.astype(np.int64) - p.baseline for p in pairs]
    )
    differences = np.zeros(len(position), np.int64)
    np.add.at(differences, index, per_answer)
    return differences, np.bincount(index)


def summarize_pair(pair: PairedAnswers, seed: int) -> dict[str, Any]:
    """Returns the figures of one pair of runs.

    Those of `summarize_all`, and the accuracies' Wilson intervals; the p-value
    is McNemar's.
    """
    total = len(pair.ids)
    right = {"compare": pair.compared, "baseline": pair.baseline}
    intervals = {
        f"{name}_interval": list(wilson_interval(int(r.sum()), total))
        for name, r in right.items()
    }
    figures = summarize_all([pair], seed)
    p_value = mcnemar_p(
        figures["only_compare_right"], figures["only_baseline_right"]
    )
    return figures | intervals | {"p_value": p_value}


def summarize_all(pairs: Sequence[PairedAnswers], seed: int) -> dict[str, Any]:
    """Returns the figures of all pairs of runs together.

    Every answer counts alike. No Wilson interval: it would take the answers to
    one image for independent ones.

    Args:
      pairs: at least one, of at least one example.
      seed: of the bootstrap.

    Returns:
      `num_examples` (answers by either), `num_images` (distinct),
      `compare_accuracy`, `baseline_accuracy`, `difference` (of these),
      `difference_interval`, `only_compare_right`, `only_baseline_right`,
      `p_value` (of `sign_flip_p`), `beyond_chance`.
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
        # On the border the two may disagree: it takes both.
        "beyond_chance": p_value < LEVEL and not low <= 0 <= high,
    }
