"""`--phase=compare`: its statistics, its pairs, what it says, how it fails."""

from __future__ import annotations

import numpy as np
import pytest

from flowers17_tfdata.results import comparison
from flowers17_tfdata.results.comparison import PairedAnswers


def _answers(only_compared, only_baseline, both=0, neither=0, prefix="image"):
    """One pair of runs with these numbers of images."""
    numbers = [only_compared, only_baseline, both, neither]
    ids = tuple(f"{prefix}_{k}" for k in range(sum(numbers)))
    compared = np.repeat([True, False, True, False], numbers)
    baseline = np.repeat([False, True, True, False], numbers)
    return PairedAnswers(ids, compared, baseline)


@pytest.mark.parametrize(
    ("only_compared", "only_baseline", "p"),
    [
        # 2 (1 + 12 + 66) / 2^12.
        (10, 2, 158 / 4096),
        (2, 10, 158 / 4096),
        # 2 (1 + 5) / 2^5.
        (4, 1, 12 / 32),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_compared, only_baseline, p):
    assert comparison.mcnemar_p(only_compared, only_baseline) == pytest.approx(
        p, rel=1e-12
    )
    # Of one pair, the pooled test is the same.
    figures = comparison.summarize_all(
        [_answers(only_compared, only_baseline, both=7)], seed=0
    )
    assert figures["p_value"] == pytest.approx(p, rel=1e-12)


def test_sign_flips_by_hand():
    # Of +-3 +-1 +-1: 5 and -5 of eight sums are as far from 0.
    assert comparison.sign_flip_p(np.array([3, 1, 1])) == pytest.approx(2 / 8)
    # 3 - 1 - 1 = 1: all of +-1, +-3, +-5 are as far.
    assert comparison.sign_flip_p(np.array([3, -1, -1])) == pytest.approx(1)
    # +-2 +-1 +-1: 4, 2, 2, 0 and their negatives; 2 or more: six of eight.
    assert comparison.sign_flip_p(np.array([2, 1, -1, 0])) == pytest.approx(
        6 / 8
    )


def test_sign_flips_agree_with_random_ones():
    rng = np.random.default_rng(0)
    differences = rng.integers(-2, 4, 60)
    signs = rng.choice([-1, 1], [100_000, 60])
    as_far = np.abs(signs @ differences) >= abs(differences.sum())
    # Four standard errors of the share.
    assert comparison.sign_flip_p(differences) == pytest.approx(
        as_far.mean(), abs=4 * np.sqrt(0.25 / 100_000)
    )


def test_an_image_in_several_pairs_counts_once():
    one = _answers(30, 12, both=150, neither=8)
    others = [_answers(30, 12, both=150, neither=8, prefix=p) for p in "abc"]
    alone = comparison.summarize_all([one], seed=3)
    shared = comparison.summarize_all([one, one, one], seed=3)
    apart = comparison.summarize_all(others, seed=3)
    assert alone["num_images"] == shared["num_images"] == 200
    assert apart["num_images"] == shared["num_examples"] == 600
    for name in ("difference", "difference_interval", "p_value"):
        assert shared[name] == pytest.approx(alone[name]), name
    # Three times the images: an interval narrower by the root of three.
    width = np.diff(alone["difference_interval"])[0]
    ratio = width / np.diff(apart["difference_interval"])[0]
    assert ratio == pytest.approx(np.sqrt(3), rel=0.1)
    assert apart["p_value"] < alone["p_value"] / 10


def test_clusters_are_summed_by_id():
    one = PairedAnswers(("a", "b"), np.array([True, False]), np.zeros(2, bool))
    two = PairedAnswers(
        ("c", "a"), np.array([False, True]), np.array([True, False])
    )
    differences, counts = comparison.cluster([one, two])
    assert differences.tolist() == [2, 0, -1]
    assert counts.tolist() == [2, 1, 1]


def test_the_bootstrap_interval_is_that_of_theory():
    # Large enough for the normal one: p1 - p2 of matched pairs, Agresti,
    # "Categorical Data Analysis" (2002), section 10.1.
    b, c, n = 300, 200, 4000
    differences = np.repeat([1, -1, 0], [b, c, n - b - c])
    half = 1.96 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    interval = comparison.bootstrap_interval(
        differences, np.ones(n, np.int64), seed=0
    )
    centre = (b - c) / n
    np.testing.assert_allclose(
        interval, [centre - half, centre + half], atol=0.03 * half * 2
    )


def test_the_bootstrap_weighs_clusters_by_their_size():
    # Of images with three answers the one alone is right; of the others, both.
    differences, counts = np.repeat([[3, 0], [3, 1]], 50, axis=1)
    low, high = comparison.bootstrap_interval(differences, counts, seed=0)
    assert low < 150 / 200 < high
    assert high - low < 0.2


def test_the_seed_decides_the_interval():
    pair = [_answers(30, 12, both=150, neither=8)]
    first = comparison.summarize_all(pair, seed=1)
    assert comparison.summarize_all(pair, seed=1) == first
    intervals = {
        tuple(comparison.summarize_all(pair, seed)["difference_interval"])
        for seed in range(5)
    }
    assert len(intervals) > 1


def test_more_than_chance_takes_both():
    assert comparison.summarize_all([_answers(30, 8)], 0)["beyond_chance"]
    assert comparison.summarize_all([_answers(8, 30)], 0)["beyond_chance"]
    assert not comparison.summarize_all([_answers(9, 8)], 0)["beyond_chance"]
    # The interval of five images that all agree has no width; p is 0.0625.
    assert not comparison.summarize_all([_answers(5, 0)], 0)["beyond_chance"]
    assert not comparison.summarize_all([_answers(0, 0, 9)], 0)["beyond_chance"]


def test_figures_of_a_pair():
    figures = comparison.summarize_pair(_answers(10, 2, both=80, neither=8), 0)
    assert figures["compare_accuracy"] == pytest.approx(0.9)
    assert figures["baseline_accuracy"] == pytest.approx(0.82)
    assert figures["difference"] == pytest.approx(0.08)
    assert (figures["only_compare_right"], figures["only_baseline_right"]) == (
        10,
        2,
    )
    # Wilson's of 90 and 82 of 100.
    assert figures["compare_interval"] == pytest.approx(
        [0.8256, 0.9448], abs=5e-5
    )
    assert figures["baseline_interval"] == pytest.approx(
        [0.7333, 0.8830], abs=5e-5
    )
    low, high = figures["difference_interval"]
    assert 0 < low < 0.08 < high < 0.16
