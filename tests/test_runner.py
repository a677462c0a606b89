"""Running a phase: what it refuses before it starts."""

from __future__ import annotations

import contextlib
import types

import pytest
import tensorflow as tf

from flowers17_tfdata import flags
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.phases import runner


@pytest.mark.parametrize("phase", ["export", "benchmark"])
def test_phases_for_one_worker_refuse_several(monkeypatch, phase):
    @contextlib.contextmanager
    def two_workers(config, trains, resumes):
        yield types.SimpleNamespace(workers=types.SimpleNamespace(count=2))

    monkeypatch.setattr(runner, "open_session", two_workers)
    monkeypatch.setattr(runner.trained_model, "find_model", lambda config: None)
    config = flags.parse(["main.py", f"--phase={phase}"])
    with pytest.raises(ConfigError, match=f"{phase} goes with one worker"):
        runner.run(config)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "{{x /job:0}} /w/tb/events.v2; No space left on device\n\tFailed",
            "/w/tb/events.v2 can't be written: No space left on device; free",
        ),
        (
            "OOM when allocating tensor with shape[64,299,299,3] [Op:Conv2D]",
            "out of memory: lower --global_batch_size",
        ),
    ],
)
def test_a_full_disk_and_a_full_memory_get_different_advice(message, expected):
    """TensorFlow raises the same error for both."""
    config = flags.parse(["main.py"])
    with (
        pytest.raises(UserError) as caught,
        runner._errors_in_one_line(config),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, message)
    assert str(caught.value).startswith(expected)


def test_a_workdir_without_a_model_is_told_before_data_are_opened(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "open_session", None)
    workdir = tmp_path / "new"
    config = flags.parse(["main.py", f"--workdir={workdir}", "--phase=report"])
    with pytest.raises(UserError, match="does not exist: train one first"):
        runner.run(config)
    assert not workdir.exists()
