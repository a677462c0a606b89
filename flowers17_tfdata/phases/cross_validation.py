"""Runs the folds of a cross-validation, each in a process of its own.

A distribution strategy can't be started twice in a process, so each fold has
another. This one only starts them and waits, without TensorFlow.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from flowers17_tfdata import launcher, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import ConfigError


def run_folds(arguments: Sequence[str], config: Config) -> int:
    """Runs a command line once for each fold, in WORKDIR/fold_N.

    A fold that is done is found done and only evaluated again, with the same
    checks as for any run that is resumed.

    Args:
      arguments: the flags, without the program's name.
      config: the configuration that they stand for.

    Returns:
      See `launcher.run_in_turn`.

    Raises:
      ConfigError: this process is one of several workers.
    """
    if launcher.is_in_cluster():
        raise ConfigError(
            "--folds without --fold=N goes with one worker (TF_CONFIG or a "
            "SLURM step of several tasks is set): pass --fold=0, then 1, ..., "
            "each with a --workdir"
        )
    terminal.configure(config.runtime.console)
    return launcher.run_in_turn(_commands(arguments, config))


def _commands(
    arguments: Sequence[str], config: Config
) -> Iterator[Sequence[str]]:
    folds = config.data.folds
    for fold in range(folds):
        workdir = pathlib.Path(config.workdir) / f"fold_{fold}"
        terminal.say(
            f"fold {fold} (of 0 to {folds - 1}) in {workdir}", fold=fold
        )
        # The last value of a flag counts. The accuracy gate is for the pooled
        # result.
        yield (
            *launcher.PROGRAM,
            *arguments,
            f"--fold={fold}",
            f"--workdir={workdir}",
            "--assert_accuracy_at_least=0",
        )
