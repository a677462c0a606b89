"""The runs of a cross-validation, each in a process of its own.

Without TensorFlow, like the launcher: a strategy doesn't start twice in a
process, so each fold has another; this one only starts them and waits.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence

from flowers17_tfdata import launcher, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import ConfigError


def run_folds(arguments: Sequence[str], config: Config) -> int:
    """Runs a command line once for each fold, in WORKDIR/fold_N.

    A fold that is done finds itself so, and is evaluated again: the same checks
    hold as for any run that is resumed.

    Args:
      arguments: flags of the command line, without the program's name.
      config: what they stand for.

    Returns:
      See `launcher.run_in_turn`.

    Raises:
      ConfigError: this is a worker among others.
    """
    _check_alone()
    terminal.configure(config.runtime.console)
    return launcher.run_in_turn(_commands(arguments, config))


def _check_alone() -> None:
    # As `cluster.find_cluster` looks for them, which needs TensorFlow.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if os.environ.get("TF_CONFIG") or tasks != "1":
        raise ConfigError(
            "--folds without --fold=N goes with one worker (TF_CONFIG or a "
            "SLURM step of several tasks is set): pass --fold=0, then 1, ..., "
            "each with a --workdir"
        )


def _commands(
    arguments: Sequence[str], config: Config
) -> Iterator[Sequence[str]]:
    folds = config.data.folds
    for fold in range(folds):
        workdir = pathlib.Path(config.workdir) / f"fold_{fold}"
        terminal.say(
            f"fold {fold} (of 0 to {folds - 1}) in {workdir}", fold=fold
        )
        # The last ones count, wherever the first ones stand.
        yield (
            *launcher.PROGRAM,
            *arguments,
            f"--fold={fold}",
            f"--workdir={workdir}",
            # It is the pooled accuracy's.
            "--assert_accuracy_at_least=0",
        )
