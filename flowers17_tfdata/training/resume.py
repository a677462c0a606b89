"""Resuming a stage: with the flags that it started with, or not at all."""

from __future__ import annotations

import pathlib
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.config.config import Config, all_flags, to_values
from flowers17_tfdata.config.data import FOLDER_PREFIX
from flowers17_tfdata.config.optimization import STAGES
from flowers17_tfdata.errors import ConfigError


def resume_key(
    config: Config, stage: str, dataset: str, precision: str
) -> dict[str, Any]:
    """Returns the flags that a stage's result depends on.

    Args:
      config: the configuration of the run.
      stage: `transfer`, `finetune` or `refit`.
      dataset: the full name of the data set, with config and version.
      precision: the resolved dtype policy.
    """
    # Refit trains as one of the other two stages does.
    others = {"transfer", "finetune"} - {stage} if stage != "refit" else set()
    names = {
        flag.name
        for flag in all_flags()
        if flag.kind.is_fixed and flag.stage not in others
    }
    if config.model.trains_batch_norm:
        # Batch-norm's statistics depend on how a batch is divided.
        names |= {"strategy", "num_virtual_devices"}
    key = {n: v for n, v in to_values(config).items() if n in names}
    for name in ("weights", "init_from"):
        if name in key:
            key[name] = absolute(key[name])
    return key | {"dataset": dataset, "precision": precision}


def absolute(path: str) -> str:
    """Returns a flag's path, for a process in another current folder.

    A value that names no file or folder stays as it is: `imagenet`, `none`, or
    a file that is gone.
    """
    if path in ("", "imagenet", "none"):
        # A folder may happen to be called imagenet.
        return path
    found = pathlib.Path(path).expanduser()
    return str(found.resolve()) if found.exists() else path


def write_key(folder: pathlib.Path, key: dict[str, Any]) -> None:
    """Records in a stage's folder the flags that the stage started with."""
    files.write_json(folder / "flags.json", key)


def check_key(
    folder: pathlib.Path, key: dict[str, Any], workdir: pathlib.Path
) -> None:
    """Refuses to resume a stage with other flags than it started with.

    A stage that has saved nothing may start again with any flags. Flags that
    only one of the two keys holds are not compared: they belong to another
    stage, or to another version of the program.

    Raises:
      ConfigError: names the first flag that differs, with both values.
    """
    path = folder / "flags.json"
    if not path.exists() or not _has_progress(folder):
        return
    for name, old in files.read_json(path).items():
        if name in ("weights", "init_from"):
            # An earlier version recorded it as it was given.
            old = absolute(old)
        if name in key and _unnamed(key[name]) != _unnamed(old):
            raise ConfigError(
                f"--{name}: {workdir} was started with {old!r}, got "
                f"{key[name]!r}; pass the old value to resume, or another "
                "--workdir"
            )


def started_with(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the flags of the training in a workdir; {} if there is none."""
    for stage in STAGES:
        folder = workdir / "checkpoints" / stage
        path = folder / "flags.json"
        if path.exists() and _has_progress(folder):
            return files.read_json(path)
    return {}


def _has_progress(folder: pathlib.Path) -> bool:
    """Whether a stage has saved a checkpoint or its result."""
    if (folder / "done.json").exists():
        # The solver of the head saves no checkpoint.
        return True
    return any(folder.glob("ckpt-*.index"))


def _unnamed(value: Any) -> Any:
    """Returns a flag's value, the data set of a folder without its name.

    The folder may be renamed: the digits stand for all that matters.
    """
    if isinstance(value, str) and value.startswith(FOLDER_PREFIX):
        return FOLDER_PREFIX + value.rpartition("@")[2]
    return value
