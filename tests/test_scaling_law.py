"""The law of the error: known laws are found, and few errors are told."""

from __future__ import annotations

import numpy as np
import pytest

from flowers17_tfdata.scoring import scaling_law
from flowers17_tfdata.scoring.scaling_law import Judged

SIZES = np.geomspace(100, 800, 5)
REPEATS = 4


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(scaling_law, "NUM_RESAMPLES", 500)


def _judge(errors, num_images=1000, seed=0, num_classes=4) -> Judged:
    """Makes answers that are wrong with the given chance at each size.

    Args:
      errors: `[sizes]`, or `[sizes, classes]`.
      num_images: the number of images.
      seed: the seed of the answers.
      num_classes: label k is that of image k modulo this.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    errors = np.broadcast_to(
        np.asarray(errors).reshape(len(SIZES), -1), [len(SIZES), num_classes]
    )
    # Most of what makes an image hard is the same in all repeats.
    hard = rng.random(num_images)
    luck = rng.random([REPEATS, 1, num_images])
    own = np.where(rng.random([REPEATS, 1, num_images]) < 0.8, hard, luck)
    return Judged(own < errors[:, labels], SIZES, labels, np.arange(num_images))


def _summarize(judged, now=1000, num_classes=4, **kwargs):
    counts = kwargs.pop("counts", np.full(num_classes, now // num_classes))
    return scaling_law.summarize(judged, now, counts, 0)


@pytest.mark.parametrize(
    ("scale", "exponent", "floor"),
    [(0.2, 0.5, 0.0), (0.3, 0.8, 0.0), (0.25, 0.9, 0.05), (0.1, 0.0, 0.0)],
)
def test_a_known_law_is_within_the_intervals(scale, exponent, floor):
    def error(n):
        return floor + scale * (n / 100) ** -exponent

    within = np.zeros(3)
    for seed in range(10):
        result = _summarize(_judge(error(SIZES), seed=seed))
        for k, row in enumerate(result["predictions"]):
            assert row["num_images"] == 1000 * row["times"]
            low, high = row["accuracy_interval"]
            assert high - low < 0.12
            within[k] += low <= 1 - error(row["num_images"]) <= high
    assert within.min() >= 8


def test_the_gain_is_that_between_the_predictions():
    result = _summarize(_judge(0.2 * (SIZES / 100) ** -0.5))
    now, twice, _ = result["predictions"]
    assert twice["gain"] == pytest.approx(twice["accuracy"] - now["accuracy"])
    low, high = twice["gain_interval"]
    # What the sizes share does not blur their difference.
    width = np.diff(twice["accuracy_interval"])
    assert 0 < low < high and high - low < width
    assert now["gain"] == 0


def test_images_of_a_group_count_as_one():
    judged = _judge(0.2 * (SIZES / 100) ** -0.5, num_images=200)
    repeated = judged._replace(
        wrong=np.repeat(judged.wrong, 5, axis=2),
        labels=np.repeat(judged.labels, 5),
        groups=np.repeat(judged.groups, 5),
    )
    widths = [
        np.diff(_summarize(j)["curve"][-1]["accuracy_interval"])[0]
        for j in (judged, repeated, repeated._replace(groups=np.arange(1000)))
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.7 * widths[0]


def test_repeats_that_differ_widen_the_interval():
    wrong = np.zeros([REPEATS, len(SIZES), 1000], bool)
    wrong[:, :, :100] = True
    alike = Judged(wrong, SIZES, np.arange(1000) % 4, np.arange(1000))
    wrong = wrong.copy()
    wrong[0, :, 100:300] = True
    wrong[1, :, :100] = False
    widths = [
        np.diff(_summarize(j)["curve"][-1]["accuracy_interval"])[0]
        for j in (alike, alike._replace(wrong=wrong))
    ]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("wrong", "total", "expected"),
    # 1 - 0.05 ** (1 / 40), and R's binom.test(2, 60, alternative="less").
    [(0, 40, 0.0722), (1.2, 60, 0.1013), (3, 3, 1.0)],
)
def test_what_few_wrong_images_leave_plausible(wrong, total, expected):
    found = scaling_law.most_wrong(wrong, total)
    assert found == pytest.approx(expected, abs=1e-4)


def test_no_error_gives_a_limit_and_no_law():
    result = _summarize(_judge(np.zeros(5), num_images=40))
    assert result["law"] is None
    assert result["predictions"] == result["most_wanted"] == []
    assert result["most_wrong"] == pytest.approx(0.0722, abs=1e-4)
    for point in result["curve"]:
        assert point["accuracy"] == 1
        assert point["accuracy_interval"] == pytest.approx([0.928, 1], abs=1e-3)
    assert result["classes"][0] == {"num_images": 250, "num_judged": 10}


def test_the_class_that_gains_most_per_photograph_is_wanted():
    error = 0.2 * (SIZES / 100) ** -0.5
    # Class 0 is wrong three times as often.
    errors = error[:, np.newaxis] * [3, 1, 1, 1] / 1.5
    result = _summarize(_judge(errors))
    assert result["most_wanted"] == [0]
    first, second = result["classes"][:2]
    assert first["recall"] < second["recall"]
    assert first["gain_per_photograph"] > 2 * second["gain_per_photograph"]
    # Class 1 is as good as 2, but has a fifth of their photographs.
    counts = np.array([320, 40, 320, 320])
    result = _summarize(_judge(error), counts=counts)
    assert result["most_wanted"] == [1]
    # All alike: chance names no class.
    assert _summarize(_judge(error))["most_wanted"] == []


def test_a_class_of_few_images_borrows_from_all():
    judged = _judge(0.2 * (SIZES / 100) ** -0.5)
    # Class 3 has five images, all of them right; class 2 none.
    kept = np.flatnonzero(judged.labels < 2).tolist()
    kept += np.flatnonzero(judged.labels == 3)[:5].tolist()
    wrong = judged.wrong[:, :, kept]
    wrong[:, :, -5:] = False
    few = Judged(wrong, SIZES, judged.labels[kept], judged.groups[kept])
    result = _summarize(few)
    assert result["classes"][2] is None
    now = result["predictions"][0]["accuracy"]
    small, large = result["classes"][3], result["classes"][0]
    assert small["num_judged"] == 5
    # Five right answers are no proof: 0.63 of the common error is left.
    assert now < small["recall"] < 1
    low, high = small["recall_interval"]
    assert low < now < high
    assert high - low > 2 * np.diff(large["recall_interval"])
