"""The script that measures a GPU, tried on this machine's CPU."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def _run(out, data_dir, *flags):
    command = [
        *(
            sys.executable,
            str(SCRIPT),
            f"--out={out}",
            f"--data_dir={data_dir}",
        ),
        *("--backbone=mobilenet", "--image_size=32", "--batches", "4", *flags),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads((out / "gpu.json").read_text())


@pytest.mark.slow
def test_parts_measure_and_a_slow_one_costs_no_other(tmp_path, data_dir):
    done, results = _run(tmp_path, data_dir, "--parts", "step", "profile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results["step_4_xla_auto"]["images_per_sec"] > 0
    assert results["step_4_xla_on"]["first_steps_seconds"] > 0
    assert 0 < results["profile"]["busy"] <= 1
    assert any("Conv2D" in name for name in results["profile"]["kernels"])
    done, results = _run(
        tmp_path, data_dir, "--parts", "sanity", "benchmark", "--limit=0.5"
    )
    assert done.returncode == 1
    for part in ("sanity", "benchmark"):
        assert results[part]["outcome"] == "not done after 0.5 s"
        assert part in done.stdout


def test_a_failed_part_is_named_with_its_last_line(tmp_path):
    out = tmp_path / "out"
    done, results = _run(
        out, tmp_path, "--parts", "recipe", "--flagfile=missing.flags"
    )
    assert done.returncode == 1
    assert results["recipe"]["outcome"].startswith("exit 2: ")
    assert "missing.flags" in results["recipe"]["outcome"]
