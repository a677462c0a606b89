"""`--phase=compare`: statistics, pairs, output and errors."""

from __future__ import annotations

import functools
import json
import os
import pathlib

import numpy as np
import pytest

from flowers17_tfdata import session, terminal
from flowers17_tfdata.scoring import comparison, predictions
from flowers17_tfdata.scoring.comparison import PairedAnswers
from flowers17_tfdata.scoring.predictions import Predictions


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
    # For one pair, the pooled test is the same.
    figures = comparison.summarize_all(
        [_answers(only_compared, only_baseline, both=7)], seed=0
    )
    assert figures["p_value"] == pytest.approx(p, rel=1e-12)


def test_sign_flips_by_hand():
    # +-3 +-1 +-1: two of the eight sums, 5 and -5, are as far from 0.
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
    # Images in three pairs: only the compared run is right. The others: both.
    differences, counts = np.repeat([[3, 0], [3, 1]], 50, axis=1)
    low, high = comparison.bootstrap_interval(differences, counts, seed=0)
    assert low < 150 / 200 < high
    assert high - low < 0.2


def test_equal_answers_to_few_images_prove_little():
    figures = comparison.summarize_pair(_answers(0, 0, both=19), 0)
    low, high = figures["difference_interval"]
    assert -low == high == pytest.approx(0.176, abs=1e-3)
    # A difference of this size would have shown in 97.5 % of such samples.
    assert (1 - high) ** 19 == pytest.approx(0.025)


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
    # Wilson intervals of 90 and 82 out of 100.
    assert figures["compare_interval"] == pytest.approx(
        [0.8256, 0.9448], abs=5e-5
    )
    assert figures["baseline_interval"] == pytest.approx(
        [0.7333, 0.8830], abs=5e-5
    )
    low, high = figures["difference_interval"]
    assert 0 < low < 0.08 < high < 0.16


def _write(
    workdir,
    ids,
    right,
    *,
    split="test",
    labels=None,
    model="a.keras",
):
    """Writes predictions that are correct where `right` is true."""
    workdir.mkdir(parents=True, exist_ok=True)
    if labels is None:
        labels = [int(i.rpartition("_")[2]) % 3 for i in ids]
    labels = np.asarray(labels, np.int64)
    logits = np.zeros([len(ids), 3], np.float32)
    answers = np.where(right, labels, (labels + 1) % 3)
    logits[np.arange(len(ids)), answers] = 5.0
    predictions.save(
        predictions.predictions_path(workdir, split),
        Predictions(tuple(ids), labels, logits, model),
    )


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The current folder, with runs/{ours,notebook}_{0,1}, evaluated.

    Each has 100 images, 90 of them in both; the second recipe's are in another
    order.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k, numbers in enumerate([(20, 4, 70, 6), (15, 5, 70, 10)]):
        answers = _answers(*numbers)
        ids = np.array([f"image_{10 * k + i}" for i in range(100)])
        _write(pathlib.Path(f"runs/ours_{k}"), ids, answers.compared)
        order = rng.permutation(100)
        _write(
            pathlib.Path(f"runs/notebook_{k}"),
            ids[order],
            answers.baseline[order],
        )
    yield tmp_path / "runs"
    terminal.configure("normal")


@pytest.fixture
def default_flags() -> list[str]:
    return ["--phase=compare", "--workdir=runs/comparison"]


@pytest.fixture
def compare(runs, run):
    """Returns `compare(*flags) -> (exit code, stdout, stderr)`."""
    return functools.partial(run, "")


_BOTH = ("--compare=runs/ours_*", "--baseline=runs/notebook_*")


def test_two_recipes_over_two_runs(compare, runs, monkeypatch):
    monkeypatch.setattr(session, "open_source", None)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = compare(*_BOTH)
    assert code == 0, err
    written = json.loads((runs / "comparison" / "comparison.json").read_text())
    assert [(p["compare"], p["baseline"]) for p in written["pairs"]] == [
        ("runs/ours_0", "runs/notebook_0"),
        ("runs/ours_1", "runs/notebook_1"),
    ]
    # Paired by id, in any order of the files.
    counts = [
        (p["only_compare_right"], p["only_baseline_right"])
        for p in written["pairs"]
    ]
    assert counts == [(20, 4), (15, 5)]
    pooled = written["pooled"]
    assert (pooled["num_examples"], pooled["num_images"]) == (200, 110)
    assert pooled["difference"] == pytest.approx(0.13)
    # Images 0 to 9, 10 to 19, 20 to 23, 24, 25 to 29.
    differences = np.repeat([1, 2, 0, 1, -1], [10, 10, 4, 1, 5])
    assert pooled["p_value"] == comparison.sign_flip_p(differences)
    assert pooled["p_value"] > 2 * comparison.mcnemar_p(35, 9)
    assert written["num_resamples"] == 10_000
    low, high = (100 * x for x in pooled["difference_interval"])
    assert out.splitlines()[-2] == (
        "test: runs/ours_* is better than runs/notebook_* by 13.0 points "
        f"(95 % interval {low:.1f} to {high:.1f}, p = {pooled['p_value']:.4f})"
    )
    assert "all baselines" in out
    assert max(map(len, out.splitlines()[:-2])) <= 80
    assert out.splitlines()[-1] == (
        "comparison written to runs/comparison/comparison.json"
    )


def test_the_better_one_is_named_first(compare, runs):
    flags = ("--compare=runs/notebook_0", "--baseline=runs/ours_0")
    code, out, err = compare(*flags)
    assert code == 0, err
    written = json.loads((runs / "comparison" / "comparison.json").read_text())
    low, high = (100 * x for x in written["pooled"]["difference_interval"])
    assert low < high < 0
    # p is 2 (1 + 24 + 276 + 2024 + 10626) / 2^24.
    assert (
        "runs/ours_0 is better than runs/notebook_0 by 16.0 points (95 % "
        f"interval {-high:.1f} to {-low:.1f}, p = 0.0015)"
    ) in out
    # A single pair has no pooled rows.
    assert "all compared" not in out


def test_a_difference_that_chance_explains(compare, runs):
    ids = [f"image_{k}" for k in range(10)]
    _write(runs / "a", ids, [True] * 8 + [False] * 2)
    _write(runs / "b", ids, [True] * 8 + [False] * 2)
    code, out, _ = compare("--compare=runs/a", "--baseline=runs/b")
    assert code == 0
    assert (
        "test: the difference between runs/a and runs/b (0.0 points, 95 % "
        "interval -30.8 to 30.8, p = 1.0000) is within what chance explains"
    ) in out
    # Two images more: in a tenth of the draws they are not there. No "-0.0".
    _write(runs / "b", ids, [True] * 10)
    code, out, _ = compare("--compare=runs/a", "--baseline=runs/b")
    assert code == 0
    assert (
        "test: the difference between runs/b and runs/a (20.0 points, 95 % "
        "interval 0.0 to 50.0, p = 0.5000) is within what chance explains"
    ) in out


def test_what_is_compared_is_told(compare, runs):
    ids = [f"image_{k}" for k in range(10)]
    _write(runs / "a", ids, [True] * 10, model="elsewhere/model_refit.keras")
    _write(runs / "b", ids, [True] * 10, model="b/model_transfer.keras")
    code, out, err = compare("--compare=runs/a", "--baseline=runs/b")
    assert code == 0, err
    assert "compare: model_refit.keras" in out
    assert "baseline: model_transfer.keras" in out
    written = json.loads((runs / "comparison" / "comparison.json").read_text())
    pair = written["pairs"][0]
    assert pair["compare_model"] == "elsewhere/model_refit.keras"


@pytest.mark.parametrize("name", ["runs/a/model.keras", "gone/model.keras"])
def test_answers_of_a_model_that_has_changed(compare, runs, name):
    # Found by path or, if that is another machine's, by name.
    ids = [f"image_{k}" for k in range(10)]
    for workdir in ("a", "b"):
        _write(runs / workdir, ids, [True] * 10, model=name)
    model = runs / "a" / "model.keras"
    model.write_bytes(b"")
    answered = (runs / "a" / "predictions_test.npz").stat().st_mtime
    flags = "--compare=runs/a", "--baseline=runs/b"
    os.utime(model, (answered - 1, answered - 1))
    assert compare(*flags)[0] == 0
    os.utime(model, (answered + 1, answered + 1))
    code, _, err = compare(*flags)
    assert code == 1
    assert (
        "runs/a/predictions_test.npz is older than its model runs/a/model.keras"
        in err
    )
    assert "--phase=evaluate --split=test --workdir=runs/a" in err


def test_json_lines(compare, runs):
    code, out, err = compare(*_BOTH, "--console=json", "--seed=5")
    assert code == 0, err
    table, *models, verdict, where = [
        json.loads(line) for line in out.splitlines()
    ]
    written = json.loads((runs / "comparison" / "comparison.json").read_text())
    assert written["seed"] == 5
    assert table["rows"] == written["pairs"]
    assert verdict.items() >= written["pooled"].items()
    assert len(models) == 2
    assert "comparison.json" in where["message"]


def test_lists_and_other_splits(compare, runs):
    ids = ["image_1", "image_2"]
    for name in ("ours_0", "notebook_0", "with, comma"):
        _write(runs / name, ids, [True, False], split="validation")
    # The glob leaves out what was not evaluated on the split, and says so.
    code, out, err = compare(
        *("--compare=runs/ours_*,runs/with, comma", "--split=validation"),
        "--baseline=runs/notebook_0",
    )
    assert code == 1
    assert err == "error: --compare: there is no folder runs/with\n"
    assert (
        "compare: runs/ours_1 holds no predictions_validation.npz: left out"
        in out
    )
    code, out, err = compare(
        *("--compare=runs/with, comma", "--baseline=runs/notebook_*"),
        "--split=validation",
    )
    assert code == 0, err
    code, out, err = compare(
        "--compare=runs/ours_1,runs/ours_0",
        "--baseline=runs/notebook_1, runs/notebook_0",
    )
    assert code == 0, err
    pairs = json.loads((runs / "comparison" / "comparison.json").read_text())
    assert [p["compare"] for p in pairs["pairs"]] == [
        "runs/ours_1",
        "runs/ours_0",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (_BOTH[:1], 2, "--baseline must be given for --phase=compare"),
        (_BOTH[1:], 2, "--compare must be given for --phase=compare"),
        (
            (*_BOTH, "--launch_local=2"),
            2,
            "--launch_local does not go with --phase=compare",
        ),
        (
            ("--compare=runs/x_*", _BOTH[1]),
            2,
            "--compare: a pattern must match workdirs; got 'runs/x_*'",
        ),
        (
            (*_BOTH, "--split=train"),
            1,
            "--compare: runs/ours_* holds no predictions_train.npz: evaluate "
            "it first (--phase=evaluate --split=train --workdir=runs/ours_0)",
        ),
        (
            (_BOTH[0], "--baseline=runs/notebook_0,runs"),
            1,
            "--baseline: runs holds no predictions_test.npz: evaluate it first "
            "(--phase=evaluate --split=test --workdir=runs)",
        ),
        (
            (_BOTH[0], "--baseline=runs/none"),
            1,
            "--baseline: there is no folder runs/none",
        ),
        (
            (_BOTH[0], "--baseline=runs/notebook_0"),
            2,
            "--compare and --baseline must name equally many workdirs; got 2 "
            "(runs/ours_*) and 1 (runs/notebook_0)",
        ),
        (
            ("--compare=runs/ours_0", "--baseline=runs/./ours_0"),
            2,
            "got runs/ours_0 in both",
        ),
        (
            (
                "--compare=runs/ours_0,runs/ours_*",
                "--baseline=runs/notebook_0,runs/notebook_*",
            ),
            2,
            "must name each pair once; got runs/ours_0 with runs/notebook_0",
        ),
        (
            ("--compare=runs/ours_0", "--baseline=runs/notebook_1"),
            1,
            "runs/ours_0 and runs/notebook_1 must have the same images in test "
            "(one data set, one --split_seed); 10 are only in the first, 10 "
            "only in the second, e.g. image_0",
        ),
    ],
)
def test_mistakes_end_in_one_line(compare, runs, flags, code, expected):
    got, _, err = compare(*flags)
    assert got == code
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert expected in err
    assert not (runs / "comparison").exists()


def test_files_that_do_not_fit_end_in_one_line(compare, runs):
    ids = [f"image_{k}" for k in range(100)]
    both = ("--compare=runs/ours_0", "--baseline=runs/a")

    def error(*flags):
        code, _, err = compare(*flags)
        assert code == 1
        assert len(err.splitlines()) == 1
        return err

    # A superset.
    _write(runs / "a", [*ids, "image_100"], [True] * 101)
    err = error(*both)
    assert "; 0 are only in the first, 1 only in the second, e.g. " in err
    assert err.endswith(" image_100\n")
    labels = [k % 3 for k in range(100)]
    labels[7] = 0
    _write(runs / "a", ids, [True] * 100, labels=labels)
    assert (
        "runs/ours_0 and runs/a must have the same labels in test; 1 differ, "
        "e.g. image_7: 1 and 0"
    ) in error(*both)
    # Another data set with the same names.
    _write(runs / "c", ids, [True] * 100, labels=[0] * 100)
    _write(runs / "d", ids, [True] * 100, labels=[0] * 100)
    assert (
        "all pairs must be of one data set; the label of image_1 is 1 in "
        "runs/ours_0, 0 in runs/c"
    ) in error(
        "--compare=runs/ours_0,runs/c", "--baseline=runs/notebook_0,runs/d"
    )
    _write(runs / "a", [*ids[:99], "image_4"], [True] * 100)
    err = error(*both)
    assert "ids must be unique" in err
    assert "image_4 occurs 2 times" in err
    path = runs / "a" / "predictions_test.npz"
    path.write_bytes(b"PK\x03\x04 cut short")
    assert "predictions_test.npz can't be read" in error(*both)


def _write_audit(workdir, *rows):
    """Writes an audit with corrections `(id, class, new class)` of test."""
    keys = ("id", "class", "new_class")
    rows = [
        {"split": "test", **dict(zip(keys, row, strict=True))} for row in rows
    ]
    text = json.dumps({"corrections": {"rows": rows}})
    (workdir / "audit.json").write_text(text)


def test_corrected_images_are_left_out(compare, runs):
    ids = [f"image_{k}" for k in range(100)]
    labels = [k % 3 for k in range(100)]
    _write(runs / "before", ids, [False] * 4 + [True] * 96, labels=labels)
    labels[0], labels[1] = 2, 2
    kept = [*range(3), *range(4, 100)]
    right = [False, True, True] + [True] * 96
    _write(
        runs / "after",
        [ids[k] for k in kept][::-1],
        right[::-1],
        labels=[labels[k] for k in kept][::-1],
    )
    flags = "--compare=runs/after", "--baseline=runs/before"
    code, _, err = compare(*flags)
    assert code == 1 and "must have the same images in test" in err
    changed = [("image_0", "a", "c"), ("image_1", "b", "c")]
    dropped = ("image_3", "a", None)
    _write_audit(runs / "after", *changed, ("image_9", "a", "a"), dropped)
    code, out, _ = compare(*flags)
    assert code == 0
    assert "left out: 3 answers to images that --corrections relabelled" in out
    pair = json.loads((runs / "comparison" / "comparison.json").read_text())
    (row,) = pair["pairs"]
    assert row["left_out"] == 3
    assert (row["num_examples"], row["only_compare_right"]) == (97, 1)
    assert row["only_baseline_right"] == 0
    # The same corrections in both runs leave nothing out.
    _write_audit(runs / "after", *changed)
    assert "image_3" in compare(*flags)[2]
    _write_audit(runs / "after", changed[0], dropped)
    assert "same labels in test; 1 differ, e.g. image_1" in compare(*flags)[2]


def test_only_worker_0_of_a_cluster_compares(compare, runs, monkeypatch):
    task = {"type": "worker", "index": 1}
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": cluster, "task": task})
    )
    code, out, err = compare(*_BOTH)
    assert code == 0, err
    assert out == "compare: only worker 0 does this\n"
    assert not (runs / "comparison").exists()
