"""The command line, with the tests' tiny backbone, as a process of its own.

`python -m tests.worker_main [OPTIONS] FLAGS`. `--launch=N` starts N such
processes as the workers of one cluster; `--count_steps=FILE` appends a byte to
FILE for each step that the chief trains; `--step_secs=SECS` waits after each
call that trains, so that a test has time to interfere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launch", type=int, default=0)
    parser.add_argument("--count_steps", default="")
    parser.add_argument("--step_secs", type=float, default=0.0)
    options, flags = parser.parse_known_args()

    from flowers17_tfdata import launcher

    launcher.PROGRAM = [
        *(sys.executable, "-m", "tests.worker_main"),
        f"--count_steps={options.count_steps}",
        f"--step_secs={options.step_secs}",
    ]
    if options.launch:
        return launcher.launch(flags, options.launch)
    from flowers17_tfdata import cli
    from flowers17_tfdata.training.trainer import Trainer
    from tests import fakes

    fakes.register_tiny_net()
    task = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    counts = options.count_steps and task["task"]["index"] == 0
    train_steps = Trainer.train_steps

    def train(self, batches, num_steps):
        totals = train_steps(self, batches, num_steps)
        if counts:
            with open(options.count_steps, "ab") as file:
                file.write(b"." * int(num_steps))
        time.sleep(options.step_secs)
        return totals

    if counts or options.step_secs:
        Trainer.train_steps = train
    sys.argv = ["main.py", *flags]
    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
