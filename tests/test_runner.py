"""Running a phase: what it refuses before it starts."""

from __future__ import annotations

import contextlib
import types

import pytest

from flowers17_tfdata import flags
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.phases import runner


@pytest.mark.parametrize("phase", ["export", "benchmark"])
def test_phases_for_one_worker_refuse_several(monkeypatch, phase):
    @contextlib.contextmanager
    def two_workers(config, trains, resumes):
        yield types.SimpleNamespace(workers=types.SimpleNamespace(count=2))

    monkeypatch.setattr(runner, "open_session", two_workers)
    config = flags.parse(["main.py", f"--phase={phase}"])
    with pytest.raises(ConfigError, match=f"{phase} goes with one worker"):
        runner.run(config)
