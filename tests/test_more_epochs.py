"""A stage that has ended goes on to more epochs, with a new schedule."""

from __future__ import annotations

import itertools
import pathlib
import shutil

import keras
import numpy as np
import pytest

from flowers17_tfdata import files
from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.checkpoints import StageCheckpoints
from flowers17_tfdata.training.inference import Inference
from flowers17_tfdata.training.resume import Course

FLAGS = ("--finetune_optimizer=adamw", "--feature_views=1", "--seed=3")


@pytest.fixture
def run(run):
    """Returns `run(workdir, *flags) -> stdout`, as one line."""

    def succeed(workdir, *flags):
        code, out, err = run(workdir, *FLAGS, *flags)
        assert code == 0, err
        return " ".join(out.split())

    return succeed


def _weights(path: pathlib.Path) -> list[np.ndarray]:
    return keras.models.load_model(path, compile=False).get_weights()


def _assert_same(path: pathlib.Path, other: pathlib.Path) -> None:
    for a, b in zip(_weights(path), _weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def _epochs(workdir: pathlib.Path, stage: str) -> list[int]:
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    return [line["epoch"] for line in lines if line["phase"] == stage]


def test_each_schedule_warms_up_and_decays():
    config = OptimizationConfig()
    make = optimizers.learning_rate_schedule
    rates = make(config, 0.1, 7, 10, restarts=(2, 3))
    first, last = make(config, 0.1, 2, 10), make(config, 0.1, 4, 10)
    for step in range(20):
        assert float(rates(step)) == float(first(step))
    for step in range(40):
        assert float(rates(30 + step)) == float(last(step))
    np.testing.assert_allclose(float(rates(25)), 0.1, rtol=1e-6)


def test_a_course_goes_on_but_not_back():
    course = Course("finetune").to(8)
    assert course.ends == (8,)
    assert course.to(20).ends == (8, 20)
    assert course.to(20).to(20).ends == (8, 20)
    assert course.begins(course.to(20))
    assert not course.to(20).begins(course.to(30))
    assert not course.begins(Course("transfer").to(20))


@pytest.mark.slow
def test_fine_tuning_and_its_refit_go_on(run, tmp_path, monkeypatch):
    # Fine-tuning is kept, its first epoch is its best.
    losses = itertools.count()
    monkeypatch.setattr(
        Inference,
        "loss_and_accuracy",
        lambda *_: (float(next(losses)), 1.0),
    )
    run("a", "--phase=transfer")
    for stage in ("finetune", "refit"):
        run("a", f"--phase={stage}", "--finetune_epochs=1")
    work, other = tmp_path / "a", tmp_path / "b"
    before = _weights(work / "model_finetune.keras")
    shutil.copytree(work, other)

    for stage in ("finetune", "refit"):
        out = run("a", f"--phase={stage}", "--finetune_epochs=3")
        line = f"{stage}: ended after 1 epoch; going on to 3 with a new"
        assert line in out
        assert _epochs(work, stage) == [1, 2, 3]
        outdated = "model_refit.keras repeats the training as it was before"
        assert (outdated in out) is (stage == "finetune")
    config = files.read_json(work / "config.json")
    assert config["flags"]["finetune_epochs"] == 3
    assert config["schedules"] == {"finetune": [1, 3]}
    # No later epoch was better, so the kept weights are those of before.
    after = _weights(work / "model_finetune.keras")
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)

    # Killed in the added part, once in each stage.
    save, saved = StageCheckpoints.save, itertools.count(1)

    def killed(self, seconds):
        save(self, seconds)
        if next(saved) in (1, 3):
            raise UserError("killed")

    monkeypatch.setattr(StageCheckpoints, "save", killed)
    for stage in ("finetune", "refit"):
        command = ["b", f"--phase={stage}", "--finetune_epochs=3"]
        with pytest.raises(AssertionError, match="killed"):
            run(*command)
        assert _epochs(other, stage) == [1, 2]
        if stage == "finetune":
            with pytest.raises(AssertionError, match="started with 3, got 4"):
                run("b", "--phase=finetune", "--finetune_epochs=4")
        assert f"{stage}: resuming after epoch 2" in run(*command)
        assert _epochs(other, stage) == [1, 2, 3]
        name = f"model_{stage}.keras"
        _assert_same(work / name, other / name)
        assert f"{stage}: already done" in run(*command)
    with pytest.raises(AssertionError, match="started with 3, got 2"):
        run("b", "--phase=finetune", "--finetune_epochs=2")


@pytest.mark.slow
def test_a_trained_head_goes_on(run, tmp_path):
    head = ["--transfer_optimizer=adamw"]
    run("a", "--phase=transfer", *head, "--transfer_epochs=3")
    out = run("a", "--phase=transfer", *head, "--transfer_epochs=5")
    assert "transfer: ended after 3 epochs; going on to 5" in out
    assert _epochs(tmp_path / "a", "transfer") == [1, 2, 3, 4, 5]
    # Fine-tuning starts from the head of 5 epochs.
    head += ["--finetune_epochs=1"]
    run("a", "--phase=finetune", *head, "--transfer_epochs=5")
    with pytest.raises(AssertionError, match="started with 5, got 6"):
        run("a", "--phase=transfer", *head, "--transfer_epochs=6")


@pytest.mark.slow
def test_a_solved_head_has_no_epochs_and_a_refit_follows_the_better_stage(
    run, tmp_path, monkeypatch
):
    for phase in ("transfer", "refit"):
        run("a", f"--phase={phase}", "--finetune_epochs=0")
    out = run("a", "--phase=transfer", "--transfer_epochs=60")
    assert "transfer: already done" in out
    assert "--transfer_epochs=60 changes nothing: lbfgs solves" in out
    monkeypatch.setattr(Inference, "loss_and_accuracy", lambda *_: (0.0, 1.0))
    run("a", "--phase=finetune", "--finetune_epochs=1")
    out = run("a", "--phase=refit", "--finetune_epochs=1")
    assert "refit: repeated, because what it repeats has changed" in out
    (epoch,) = _epochs(tmp_path / "a", "refit")
    assert epoch == 1
    course = files.read_json(tmp_path / "a/checkpoints/refit/done.json")
    assert (course["method"], course["ends"]) == ("finetune", [1])
