"""Two worker processes on one machine: they equal one, and survive kills."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import psutil
import pytest

from flowers17_tfdata import files, launcher
from tests import fakes

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
# The other worker ends within seconds in practice: its collectives fail.
LOST_WORKER_SECS = 60


def _environment() -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return kept | quiet


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of `trainer_worker`: alone, and of each of two workers."""
    folder = tmp_path_factory.mktemp("trainer")
    program = [sys.executable, "-m", "tests.trainer_worker"]
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    subprocess.run(
        [*program, folder / "one"], cwd=ROOT, env=_environment(), check=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(launcher, "PROGRAM", program)
        for name, value in _environment().items():
            patch.setenv(name, value)
        assert launcher.launch([str(folder / "two")], 2) == 0
    read = lambda name: dict(np.load(folder / name))  # noqa: E731
    return read("one/0.npz"), read("two/0.npz"), read("two/1.npz")


def _of_case(result, case):
    return {k: v for k, v in result.items() if k.startswith(case + "/")}


@pytest.mark.parametrize("case", ["plain", "smooth", "scale"])
def test_two_workers_equal_one_with_twice_the_batch(results, case):
    one, *two = results
    for worker in two:
        for name, value in _of_case(one, case).items():
            np.testing.assert_allclose(
                worker[name], value, atol=2e-6, err_msg=name
            )
    # Each of 27 examples was evaluated exactly once, over both workers.
    correct = 27 * two[0][f"{case}/scores"][1]
    assert correct == pytest.approx(round(correct))


def test_cases_differ(results):
    # Otherwise their agreement between workers would prove nothing.
    one = results[0]
    assert not np.allclose(one["plain/0"], one["smooth/0"], atol=1e-4)


def test_an_overflow_on_one_worker_skips_the_step_on_both(results):
    for result in results:
        for name, before in _of_case(result, "before_overflow").items():
            key = name.partition("/")[2]
            np.testing.assert_array_equal(
                result[f"after_overflow/{key}"], before
            )
        before = result["before_overflow/0"]
        assert np.any(result["after_good_step/0"] != before)
    for name, value in _of_case(results[1], "after_good_step").items():
        np.testing.assert_array_equal(results[2][name], value)
        np.testing.assert_allclose(results[0][name], value, atol=2e-6)


def test_workers_agree(results):
    assert results[0]["gather"].tolist() == [[0, 7]]
    for worker in results[1:]:
        assert worker["count"] == 2
        assert worker["gather"].tolist() == [[0, 7], [1, 7]]
        assert worker["any"].tolist() == [True, True, False]
        assert worker["all"].tolist() == [True, False, False]
        assert worker["agree"].tolist() == [True, False]


class _Run:
    """A run of two workers that a test starts and disturbs."""

    def __init__(self, workdir, tiny_command):
        self.workdir = workdir
        self.log = workdir.with_suffix(".log")
        self._command = tiny_command(
            workdir,
            "--launch=2",
            "--phase=transfer",
            "--feature_views=0",
            "--transfer_epochs=6",
            "--transfer_optimizer=sgd",
        )

    def start(self, *flags) -> subprocess.Popen:
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [*self._command, *flags],
                cwd=ROOT,
                env=_environment(),
                stdout=log,
                stderr=log,
            )

    def finish(self, process: subprocess.Popen) -> tuple[int, str]:
        code = process.wait(timeout=400)
        return code, self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in self.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def send(self, number: signal.Signals, index: int) -> None:
        """Sends a signal to a worker, which must be running."""
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if (
                f"--workdir={self.workdir}" in command
                and "--launch=2" not in command
                and f'"index": {index}' in process.environ()["TF_CONFIG"]
            ):
                return process.send_signal(number)
        raise AssertionError(
            f"worker {index} has ended: {self.log.read_text()}"
        )

    def weights(self) -> list[np.ndarray]:
        model = keras.models.load_model(self.workdir / "model_transfer.keras")
        return [keras.ops.convert_to_numpy(v) for v in model.variables]


@pytest.fixture
def make_run(tmp_path, tiny_command):
    return lambda name: _Run(tmp_path / name, tiny_command)


def test_killed_and_stopped_workers_end_where_undisturbed_ones_do(make_run):
    undisturbed = make_run("undisturbed")
    code, log = undisturbed.finish(undisturbed.start())
    assert code == 0, log
    # Only the chief prints and writes.
    assert log.count("transfer epoch 6/6") == 1
    lines = files.read_json_lines(undisturbed.workdir / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, 7))

    # 78 steps, so slow that no run ends before it is disturbed.
    run = make_run("disturbed")
    process = run.start("--step_secs=0.2")
    run.wait_for("transfer epoch 1/6")
    run.send(signal.SIGTERM, 1)
    code, log = run.finish(process)
    assert code == 42, log
    assert log.count("stopped: transfer") == 2

    for index in (1, 0):
        process = run.start("--step_secs=0.2", "--checkpoint_every_secs=0.2")
        run.wait_for("resuming after epoch")
        time.sleep(1.0)
        run.send(signal.SIGKILL, index)
        start = time.monotonic()
        code, log = run.finish(process)
        assert code == 1
        assert time.monotonic() - start < LOST_WORKER_SECS
        assert "error: another worker of this run is gone" in log
        assert f"worker {index}: killed by SIGKILL" in log
    code, log = run.finish(run.start())
    assert code == 0, log
    for a, b in zip(run.weights(), undisturbed.weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = files.read_json_lines(run.workdir / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, 7))


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_train_phase_on_cached_features(make_run, tmp_path, optimizer):
    run = make_run("train")
    weights = str(tmp_path / "tiny.weights.h5")
    fakes.build_tiny_net((32, 32, 3)).save_weights(weights)
    code, log = run.finish(
        run.start(
            "--phase=train",
            "--feature_views=2",
            f"--weights={weights}",
            f"--transfer_optimizer={optimizer}",
            "--transfer_epochs=1",
            "--finetune_epochs=1",
        )
    )
    assert code == 0, log
    config = files.read_json(run.workdir / "config.json")
    assert (config["num_workers"], config["num_replicas"]) == (2, 2)
    evaluation = files.read_json(run.workdir / "evaluation.json")
    assert evaluation["num_examples"] == 260
    # Both workers' rows, in the split's order.
    shapes = {
        np.load(features)["values"].shape[:2]
        for features in (run.workdir / "features").glob("*.npz")
    }
    assert shapes == {(2, 800), (1, 260)}


def test_a_worker_that_never_comes(tmp_path, tiny_command):
    environment = _environment() | {
        "TF_CONFIG": '{"cluster": {"worker": ["localhost:1", "localhost:2"]},'
        ' "task": {"type": "worker", "index": 1}}'
    }
    result = subprocess.run(
        tiny_command(tmp_path, "--phase=transfer", "--stall_timeout_secs=3"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "waiting for all 2 workers; ends with 1 after 3 s" in result.stderr
    # One line, no thread dump; it names the worker that isn't there.
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: the workers are not complete after 3 s")
    assert re.search(r"missing: \S+:\d+", error)
    assert "Thread" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("index", [0, 1])
def test_signals_end_the_wait_for_workers(tmp_path, number, index):
    ports = launcher._free_ports(2)
    addresses = [f"localhost:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    tf_config = {"cluster": {"worker": addresses}, "task": task}
    with subprocess.Popen(
        [
            *launcher.PROGRAM,
            "--phase=prepare",
            "--dataset=oxford_flowers17/synthetic",
            f"--workdir={tmp_path}",
            f"--data_dir={tmp_path}",
        ],
        env=_environment() | {"TF_CONFIG": json.dumps(tf_config)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "waiting for all 2 workers" in process.stderr.readline()
        # TensorFlow takes the signal for itself when it begins to wait.
        time.sleep(3)
        process.send_signal(number)
        try:
            assert process.wait(15) == -signal.SIGINT
        finally:
            process.kill()
        lines = process.stderr.read().splitlines()
    expected = ["interrupted: SIGTERM in the wait for workers"]
    assert lines == (expected if number is signal.SIGTERM else [])
