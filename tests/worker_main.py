"""The command line, with the tests' tiny backbone, as a process of its own.

`python -m tests.worker_main [OPTIONS] FLAGS`: `--launch=N` starts N such
processes as the workers of one cluster; `--count_steps=FILE` appends a byte to
FILE for each step that the chief trains; `--expect_threads=INTRA,INTER` checks
at the end how many TensorFlow was told to use.
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
    parser.add_argument("--expect_threads", default="")
    options, flags = parser.parse_known_args()
    if options.launch:
        from flowers17_tfdata import launcher

        if options.count_steps:
            flags.append(f"--count_steps={options.count_steps}")
        return launcher.launch(
            flags, options.launch, [sys.executable, "-m", "tests.worker_main"]
        )
    import keras
    import tensorflow as tf

    from flowers17_tfdata import cli, launcher
    from flowers17_tfdata.training.trainer import Trainer
    from tests import fakes

    keras.applications.TinyNet = fakes.TinyNet
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
    if options.expect_threads:
        main = cli.main

        def checked(argv):
            code = main(argv)
            threading = tf.config.threading
            intra = threading.get_intra_op_parallelism_threads()
            inter = threading.get_inter_op_parallelism_threads()
            assert f"{intra},{inter}" == options.expect_threads
            return code

        cli.main = checked
    sys.argv = ["main.py", *flags]
    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
