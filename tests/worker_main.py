"""The command line, with the tests' tiny backbone, as a process of its own.

`python -m tests.worker_main [OPTIONS] FLAGS`: `--launch=N` starts N such
processes as the workers of one cluster; `--count_steps=FILE` appends a byte to
FILE for each step that the chief trains.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launch", type=int, default=0)
    parser.add_argument("--count_steps", default="")
    options, flags = parser.parse_known_args()
    if options.launch:
        from flowers17_tfdata import launcher

        if options.count_steps:
            flags.append(f"--count_steps={options.count_steps}")
        return launcher.launch(
            flags, options.launch, [sys.executable, "-m", "tests.worker_main"]
        )
    from flowers17_tfdata import cli, launcher
    from flowers17_tfdata.training.trainer import Trainer
    from tests import fakes

    fakes.register_tiny_net()
    # Those that it starts itself, too.
    launcher.PROGRAM = [sys.executable, "-m", "tests.worker_main"]
    if options.count_steps:
        launcher.PROGRAM.append(f"--count_steps={options.count_steps}")
    index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    if options.count_steps and index["task"]["index"] == 0:
        train_steps = Trainer.train_steps

        def counted(self, batches, num_steps):
            totals = train_steps(self, batches, num_steps)
            with open(options.count_steps, "ab") as file:
                file.write(b"." * int(num_steps))
            return totals

        Trainer.train_steps = counted
    sys.argv = ["main.py", *flags]
    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
