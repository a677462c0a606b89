"""Kills a run of two workers again and again, and compares its result.

    python -m tests.soak --kills=50

It trains a small network on the synthetic data set twice: undisturbed, and
with `--kills` kills. Each kill hits the chief or the other worker at a random
moment, by SIGTERM or SIGKILL; a third of the kills wait until a checkpoint is
being written. It prints a JSON object: the kills by kind, the exit codes, the
steps trained twice, and whether the models are bit-equal. It exits with 1 if
any of this is wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import psutil

_FLAGS = (
    "--phase=train",
    "--dataset=oxford_flowers17/synthetic",
    "--backbone=tiny_net",
    "--weights=none",
    "--image_size=32",
    "--global_batch_size=32",
    "--transfer_optimizer=adamw",
    "--feature_views=0",
    "--transfer_epochs=4",
    "--finetune_optimizer=adamw",
    "--stall_timeout_secs=120",
    "--grace_secs=60",
)
_MAX_SECS_A_LIFE = 900
# A run that is interrupted ends with one of these and a line that says why.
_EXPECTED = {0: "", 42: "stopped: ", 1: "another worker of this run is gone"}


class Run:
    """One workdir, and the processes that train in it."""

    def __init__(self, folder: pathlib.Path, name: str, epochs: int):
        self.workdir = folder / name
        self.steps = folder / f"{name}.steps"
        self.log = folder / f"{name}.log"
        self._command = [
            *(sys.executable, "-m", "tests.worker_main", "--launch=2"),
            f"--count_steps={self.steps}",
            f"--workdir={self.workdir}",
            f"--data_dir={folder / 'data'}",
            f"--finetune_epochs={epochs}",
            *_FLAGS,
        ]

    def start(self, *flags: str) -> subprocess.Popen:
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [*self._command, *flags],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def count_steps(self) -> int:
        return self.steps.stat().st_size if self.steps.exists() else 0

    def workers(self) -> dict[int, psutil.Process]:
        """Returns the worker processes that run now, by index."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if (
                f"--workdir={self.workdir}" in command
                and "--launch=2" not in command
            ):
                try:
                    task = json.loads(process.environ()["TF_CONFIG"])["task"]
                except (psutil.Error, KeyError):
                    continue
                found[task["index"]] = process
        return found

    def is_saving(self) -> bool:
        """Whether a checkpoint is half written."""
        return any(self.workdir.glob("checkpoints/*/**/*.tempstate*"))


def live(run: Run, kind: tuple[int, int], seconds: float, saving: bool):
    """Starts a run, kills one worker, waits; returns its end.

    Returns:
      Whether it was killed, the exit code, and how long that took.
    """
    number, index = kind
    process = run.start("--checkpoint_every_secs=1")
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    while saving and process.poll() is None and not run.is_saving():
        # Busy: it lasts a few milliseconds.
        if time.monotonic() > deadline + 30:
            break
    start, killed = time.monotonic(), False
    worker = run.workers().get(index)
    if worker is not None and process.poll() is None:
        try:
            worker.send_signal(number)
            killed = True
        except psutil.NoSuchProcess:
            pass
    code = process.wait(timeout=_MAX_SECS_A_LIFE)
    return killed, code, time.monotonic() - start


def compare(a: Run, b: Run) -> bool:
    """Whether both runs ended with the same models, bit for bit."""
    for name in ("model_transfer.keras", "model_finetune.keras"):
        models = [keras.models.load_model(run.workdir / name) for run in (a, b)]
        values = [
            [keras.ops.convert_to_numpy(v) for v in model.variables]
            for model in models
        ]
        if not all(map(np.array_equal, *values)):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=260)
    parser.add_argument("--max_secs", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        undisturbed = Run(folder, "undisturbed", options.epochs)
        code = undisturbed.start().wait()
        assert code == 0, undisturbed.log.read_text(errors="replace")
        needed = undisturbed.count_steps()
        run = Run(folder, "disturbed", options.epochs)
        kills, codes, failures, slowest = collections.Counter(), [], [], 0.0
        code = None
        while code != 0 or sum(kills.values()) < options.kills:
            if code == 0:
                failures.append("it ended too early: more --epochs")
                break
            number = rng.choice((signal.SIGTERM, signal.SIGKILL))
            kind = number, rng.randrange(2)
            enough = sum(kills.values()) >= options.kills
            seconds = 1e9 if enough else rng.uniform(6.0, options.max_secs)
            saving = not enough and rng.random() < 1 / 3
            killed, code, took = live(run, kind, seconds, saving)
            codes.append(code)
            log = run.log.read_text(errors="replace")
            if killed:
                # Python's and TensorFlow's start-up know no handler yet.
                early = "transfer" not in log or kind[0] == signal.SIGKILL
                who = "chief" if kind[1] == 0 else "worker"
                when = "saving" if saving else "any"
                kills[f"{signal.Signals(kind[0]).name} {who} {when}"] += 1
                slowest = max(slowest, took)
                if code not in _EXPECTED or not (early or code == 42):
                    failures.append(f"{kind} after {seconds:.1f} s: {code}")
                    print(log, file=sys.stderr)
            elif code != 0:
                failures.append(f"not killed, but ended with {code}")
                print(log, file=sys.stderr)
                break
            print(
                f"{sum(kills.values())} {kind} {seconds:.1f} s: {code}, steps "
                f"{run.count_steps()}/{needed}",
                file=sys.stderr,
                flush=True,
            )
        equal = code == 0 and compare(undisturbed, run)
        result = {
            "kills": sum(kills.values()),
            "by_kind": dict(kills),
            "exit_codes": dict(collections.Counter(codes)),
            "slowest_end_secs": round(slowest, 1),
            "steps": needed,
            "steps_trained_twice": run.count_steps() - needed,
            "models_bit_equal": equal,
            "failures": failures,
        }
        print(json.dumps(result, indent=2))
        return 0 if equal and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
