"""The learning-rate range test: its curve, its schedule, its phase."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re

import filelock
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import cli, flags
from flowers17_tfdata.phases.find_lr import range_test
from flowers17_tfdata.phases.find_lr.curve import Curve, still_falls, suggest
from flowers17_tfdata.training import strategy

STEPS = 100
RATES = np.geomspace(1e-6, 1.0, STEPS)


def _curve(smoothed, rates=RATES) -> Curve:
    """A curve whose smoothed loss is given, not averaged."""
    curve = Curve()
    curve.rates = list(rates)
    curve.losses = curve.smoothed = [float(x) for x in smoothed]
    return curve


def _slopes(corners: dict[int, float]) -> np.ndarray:
    """Losses on straight lines, over the step, through `{step: loss}`."""
    return np.interp(np.arange(STEPS), list(corners), list(corners.values()))


def test_smoothed_loss_is_a_mean_with_falling_weights():
    rng = np.random.default_rng(0)
    losses = rng.uniform(2, 3, STEPS)
    curve = Curve()
    for rate, loss in zip(RATES, losses, strict=True):
        curve.add(rate, loss)
    assert curve.ended == ""
    for k in (0, 1, 50, 99):
        weights = 0.98 ** np.arange(k, -1, -1)
        expected = np.average(losses[: k + 1], weights=weights)
        assert curve.smoothed[k] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("minimum", "height", "ended"),
    [
        (1.0, 3.9, ""),
        (1.0, 4.1, "diverged"),
        # A minimum near 0 counts as half a nat.
        (0.01, 1.9, ""),
        (0.01, 2.1, "diverged"),
    ],
)
def test_four_times_the_minimum_ends_it(minimum, height, ended):
    curve = Curve()
    for rate in RATES[:50]:
        curve.add(rate, minimum)
    # What the next loss must be for the average to be `height`.
    weight = 0.02 / (1 - 0.98**51)
    curve.add(RATES[50], minimum + (height - minimum) / weight)
    assert curve.smoothed[-1] == pytest.approx(height)
    assert curve.ended == ended


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_ends_it_and_is_not_kept(loss):
    curve = Curve()
    curve.add(1e-6, 1.0)
    curve.add(1e-5, loss)
    assert curve.ended == "not finite"
    assert (curve.rates, curve.losses, curve.smoothed) == ([1e-6], [1.0], [1.0])


def test_a_step_that_loss_scaling_left_out_does_not_count():
    curve = Curve()
    for rate, loss in [(1e-6, 3.0), (1e-6, 9.0), (1e-5, 3.0)]:
        curve.add(rate, loss)
    assert curve.rates == [1e-6, 1e-5]
    assert curve.smoothed == pytest.approx([3.0, 3.0])


def test_suggestion_of_a_curve_with_a_known_answer():
    # Flat, slow fall, fast fall from 60 to 62, slow fall, rise.
    losses = _slopes({0: 3, 29: 3, 60: 2.7, 62: 2.0, 80: 1.9, 99: 6})
    found = suggest(_curve(losses), STEPS)
    # 52 losses, from step 29 to step 80, each lower than the one before it.
    assert found == pytest.approx(RATES[54])


def test_a_rise_within_the_valley_does_not_end_it():
    losses = _slopes({0: 3, 29: 3, 80: 1, 99: 6})
    losses[50] += 0.1
    found = suggest(_curve(losses), STEPS)
    # The step that is too high is left out.
    assert found in RATES[54:57]


def test_the_recovery_from_a_rise_is_no_descent():
    losses = _slopes({0: 3, 30: 3, 50: 2, 60: 9, 85: 2.5, 99: 9})
    found = suggest(_curve(losses), STEPS)
    # 21 losses from step 30 to step 50; the recovery has 25.
    assert found == pytest.approx(RATES[40])


def test_the_first_tenth_and_the_last_steps_are_ignored():
    losses = _slopes({0: 3, 29: 3, 80: 1, 99: 6})
    losses[9], losses[95] = 0.1, 0.2
    found = suggest(_curve(losses), STEPS)
    # The middle of the fall from step 29 to step 80.
    assert found == pytest.approx(RATES[54])
    losses[10] = 0.1
    assert suggest(_curve(losses), STEPS) is None


@pytest.mark.parametrize("kept", [0, 3, 16, STEPS])
def test_no_suggestion_where_the_loss_does_not_fall(kept):
    losses = np.linspace(2, 3, STEPS)[:kept]
    assert suggest(_curve(losses, RATES[:kept]), STEPS) is None


def test_a_loss_that_still_falls_asks_for_higher_rates():
    assert still_falls(_curve(_slopes({0: 3, 99: 1})), STEPS)
    assert not still_falls(_curve(_slopes({0: 3, 80: 1, 99: 6})), STEPS)
    assert not still_falls(Curve(), STEPS)


def test_the_schedule_goes_from_the_first_rate_to_the_last():
    schedule = range_test.rising_rates()
    rates = [float(schedule(step)) for step in range(STEPS)]
    assert range_test.NUM_STEPS == STEPS
    np.testing.assert_allclose(rates, RATES, rtol=1e-4)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--find_lr_stage=train", "--find_lr_stage must be one of transfer"),
        (
            "--find_lr_stage=transfer",
            "--find_lr_stage=transfer goes with --transfer_optimizer=sgd, adam",
        ),
    ],
)
def test_bad_flags_exit_2_with_one_line(flag, expected, capsys):
    assert cli.main(["main.py", "--phase=find_lr", flag]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


@pytest.fixture
def default_flags(data_dir) -> list[str]:
    """The workdir's `config.json` has the others."""
    return [f"--data_dir={data_dir}", "--strategy=default"]


@pytest.fixture
def tiny(tiny_flags) -> list[str]:
    return [
        *tiny_flags,
        *("--head_units=16", "--global_batch_size=32", "--transfer_epochs=2"),
        *("--transfer_optimizer=adamw", "--finetune_epochs=1"),
    ]


@pytest.fixture
def try_rates(monkeypatch):
    """Returns `try_rates(num_steps, first, last)`: instead of its own."""

    def try_rates(num_steps, first, last):
        monkeypatch.setattr(range_test, "NUM_STEPS", num_steps)
        monkeypatch.setattr(range_test, "FIRST_RATE", first)
        monkeypatch.setattr(range_test, "LAST_RATE", last)

    return try_rates


def _files(workdir: pathlib.Path) -> dict[str, str]:
    """Returns the digest of each file but those of the test, and the log."""
    own = {"find_lr_finetune.json", "find_lr_finetune.html", "timings.jsonl"}
    own |= {name.replace("finetune", "transfer") for name in own}
    return {
        str(path.relative_to(workdir)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in own
    }


@pytest.mark.slow
def test_finetune_of_a_run_is_tried_and_nothing_else_changes(
    run, tiny, tmp_path, try_rates
):
    try_rates(40, 1e-5, 1e3)
    code, _, err = run("a", "--phase=transfer", *tiny)
    assert code == 0, err
    before = _files(tmp_path / "a")
    # The workdir tells the rest.
    code, out, err = run("a", "--phase=find_lr")
    assert code == 0, err
    assert _files(tmp_path / "a") == before
    result = _result(tmp_path / "a", "finetune")
    assert result["stage"] == "finetune"
    assert result["flags"]["global_batch_size"] == 32
    assert result["flags"]["backbone"] == "tiny_net"
    # At a rate of 1000 it can't but diverge.
    assert result["ended"] in ("diverged", "not finite")
    rates = result["rates"]
    assert len(rates) == len(result["losses"]) == len(result["smoothed"])
    np.testing.assert_allclose(
        rates, np.geomspace(1e-5, 1e3, 40)[: len(rates)], rtol=1e-4
    )
    assert rates[0] < result["suggestion"] < rates[-1]
    assert f"find_lr: {result['flag']}, from " in out
    assert str(tmp_path / "a" / "find_lr_finetune.html") in out

    text = (tmp_path / "a" / "find_lr_finetune.html").read_text()
    assert result["flag"] in text
    assert "default-src 'none'" in text
    assert not re.search(r"<link|<script[^>]+src=|<img", text)
    (figure,) = re.findall(r'data-chart="chart-find-lr">(.*?)</script>', text)
    figure = json.loads(figure)
    assert figure["layout"]["xaxis"]["type"] == "log"
    series = {trace["name"].split(":")[0]: trace for trace in figure["data"]}
    assert len(series["smoothed"]["y"]) == len(rates)
    assert series["suggestion"]["x"] == [result["suggestion"]] * 2
    # Light and dark: the page puts the colours in.
    assert series["suggestion"]["line"]["color"] == "var(--series-validation)"
    # The stage itself takes what was found.
    code, _, err = run("a", "--phase=finetune", *tiny, result["flag"])
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["transfer", "finetune"])
def test_the_losses_are_the_stages_own(run, tiny, tmp_path, stage, try_rates):
    """So are model, statistics, images, their order and augmentation."""
    flags = [*tiny, "--feature_views=0"]
    flags += ["--class_weights=balanced", "--transfer_epochs=1"]
    if stage == "finetune":
        assert run("a", "--phase=transfer", *flags)[0] == 0
    # One epoch of 25 steps, at rates that move nothing.
    try_rates(25, 1e-10, 1e-9)
    code, _, err = run(
        "a", "--phase=find_lr", f"--find_lr_stage={stage}", *flags
    )
    assert code in (0, 1), err
    losses = _result(tmp_path / "a", stage)["losses"]
    rate = f"--{stage}_learning_rate=1e-9"
    code, _, err = run("a", f"--phase={stage}", *flags, rate)
    assert code == 0, err
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    expected = json.loads(lines[-1])["train_loss"]
    assert np.mean(losses) == pytest.approx(expected, rel=1e-5)


def _result(workdir: pathlib.Path, stage: str = "transfer") -> dict:
    path = workdir / f"find_lr_{stage}.json"
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 1])
def test_transfer_is_tried_before_anything_is_trained(
    run, tiny, tmp_path, views, try_rates
):
    try_rates(60, 1e-6, 10)
    code, out, err = run(
        "a",
        "--phase=find_lr",
        "--find_lr_stage=transfer",
        "--console=json",
        f"--feature_views={views}",
        *tiny,
    )
    assert code == 0, err
    result = _result(tmp_path / "a")
    assert result["flag"].startswith("--transfer_learning_rate=")
    lines = [json.loads(line) for line in out.splitlines()]
    (line,) = [line for line in lines if "suggestion" in line]
    assert line["suggestion"] == result["suggestion"]
    # The features are of the stage: it will find them.
    kept = {name.split("/")[0] for name in _files(tmp_path / "a")}
    assert kept <= {".lock", "features"}
    assert ("features" in kept) == (views > 0)


@pytest.mark.slow
def test_two_replicas_see_the_losses_of_one(
    run, tiny, tmp_path, monkeypatch, mirrored_strategy, try_rates
):
    """On images; without what a replica draws or measures for itself."""
    flags = [*tiny, "--phase=find_lr", "--find_lr_stage=transfer"]
    flags += ["--feature_views=0", "--dropout=0"]
    try_rates(30, 1e-6, 1e-2)
    for name, chosen in (
        ("one", tf.distribute.get_strategy()),
        ("two", mirrored_strategy),
    ):
        monkeypatch.setattr(strategy, "get_strategy", lambda _, s=chosen: s)
        code, _, err = run(name, *flags)
        assert code == 0, err
    one, two = (_result(tmp_path / name) for name in ("one", "two"))
    assert (one["num_replicas"], two["num_replicas"]) == (1, 2)
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-3)


def test_a_missing_transfer_model_is_named(run, tiny, tmp_path):
    code, _, err = run("a", "--phase=find_lr", *tiny)
    assert code == 1
    path = tmp_path / "a" / "model_transfer.keras"
    assert f"error: --phase=find_lr needs {path}: run --phase=transfer" in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "a").glob("find_lr*"))


def test_a_run_that_trains_keeps_it_out(run, tiny, tmp_path):
    (tmp_path / "a").mkdir()
    with filelock.FileLock(tmp_path / "a" / ".lock"):
        code, _, err = run("a", "--phase=find_lr", *tiny)
    assert code == 1
    assert f"error: --workdir {tmp_path / 'a'} is in use" in err


@pytest.mark.slow
def test_rates_too_high_from_the_start_are_told(run, tiny, tmp_path, try_rates):
    try_rates(100, 1e4, 1e5)
    code, _, err = run(
        "a", "--phase=find_lr", "--find_lr_stage=transfer", *tiny
    )
    assert code == 1
    assert err.startswith("error: the loss of transfer doesn't fall at learn")
    assert "rates from 10000 to 100000 (" in err
    assert err.count("\n") == 1
    assert _result(tmp_path / "a")["suggestion"] is None
    assert (
        "falls at none"
        in (tmp_path / "a" / "find_lr_transfer.html").read_text()
    )


def test_the_workdir_tells_what_the_stage_was_made_of(tmp_path):
    recorded = {
        "dataset": "folder:/photos",
        "unfreeze_from": "mixed5",
        "label_smoothing": 0.2,
        "finetune_optimizer": "sgd",
        "seed": 7,
        "cache": "none",
        "archive": "/gone.tgz",
        "strategy": "mirrored",
    }
    text = json.dumps({"flags": recorded})
    (tmp_path / "config.json").write_text(text)
    command = ["main.py", "--phase=find_lr", f"--workdir={tmp_path}"]
    config = flags.parse([*command, "--finetune_optimizer=adam"])
    assert config.data.dataset == "folder:/photos"
    assert config.model.unfreeze_from == "mixed5"
    assert config.optimization.label_smoothing == 0.2
    assert config.optimization.finetune_optimizer == "adam"
    assert config.runtime.seed == 7
    # This flag describes the machine, not the run.
    assert config.input.cache == "auto"
    assert config.data.archive == ""
    assert config.runtime.strategy == "auto"
    config = flags.parse(["main.py", "--phase=report", command[-1]])
    assert config.optimization.finetune_optimizer == "adamw"
