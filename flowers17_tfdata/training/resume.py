"""Resuming a stage: with the flags that it started with, or not at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.config.config import Config, all_flags, to_values
from flowers17_tfdata.config.data import OWN_PREFIXES
from flowers17_tfdata.config.optimization import SOLVER, STAGES
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.training.stage import StageResult


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
    if key.get("extends"):
        # It may be gone by the time that the run is resumed.
        key["extends"] = os.path.abspath(os.path.expanduser(key["extends"]))
    # The name of the data set stands for what the table says.
    del key["corrections"]
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
    folder: pathlib.Path,
    key: dict[str, Any],
    workdir: pathlib.Path,
    may_grow: Collection[str] = (),
) -> None:
    """Refuses to resume a stage with other flags than it started with.

    A stage that has saved nothing may start again with any flags. Flags that
    only one of the two keys holds are not compared: they belong to another
    stage, or to another version of the program.

    Args:
      folder: the stage's folder.
      key: the flags of this run, from `resume_key`.
      workdir: the run's folder, for the error message.
      may_grow: flags that may be higher than they were.

    Raises:
      ConfigError: names the first flag that differs, with both values.
    """
    unused = set()
    if key.get("transfer_optimizer") == SOLVER:
        unused.add("transfer_epochs")
    for name, old in started_stage_with(folder).items():
        if name not in key or name in unused:
            continue
        if name in may_grow and key[name] > old:
            continue
        if name in ("weights", "init_from"):
            # An earlier version recorded it as it was given.
            old = absolute(old)
        if _unnamed(key[name]) != _unnamed(old):
            raise ConfigError(
                f"--{name}: {workdir} was started with {old!r}, got "
                f"{key[name]!r}; pass the old value to resume, or another "
                "--workdir"
            )


def started_with(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the flags of the training in a workdir; {} if there is none."""
    for stage in STAGES:
        started = started_stage_with(workdir / "checkpoints" / stage)
        if started:
            return started
    return {}


def started_stage_with(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the flags of a stage that has saved something; else {}."""
    path = folder / "flags.json"
    # The solver of the head saves no checkpoint.
    saved = (folder / "done.json").exists() or has_checkpoint(folder)
    return files.read_json(path) if saved and path.exists() else {}


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a stage's folder holds a checkpoint."""
    return any(folder.glob("ckpt-*.index"))


@dataclasses.dataclass(frozen=True)
class Course:
    """How a stage trains, or has trained.

    Attributes:
      method: `transfer` or `finetune`; '' if version 0.1.0 has trained it.
      ends: the numbers of epochs after which its learning-rate schedules end,
        one for each time that it was continued, and one more; empty if the
        head is solved.
    """

    method: str
    ends: tuple[int, ...] = ()

    def to(self, epochs: int) -> Course:
        """Returns the course that goes on to a number of epochs."""
        if self.ends and epochs <= self.ends[-1]:
            return self
        return Course(self.method, (*self.ends, epochs))

    def begins(self, other: Course) -> bool:
        """Whether another course goes on where this one ends."""
        return (
            self.method == other.method
            and self.ends == other.ends[: len(self.ends)]
        )


def write_done(
    folder: pathlib.Path, result: StageResult, course: Course
) -> None:
    """Records that a stage has ended, and how."""
    files.write_json(
        folder / "done.json",
        dataclasses.asdict(result) | dataclasses.asdict(course),
    )


def ended_course(folder: pathlib.Path) -> Course | None:
    """Returns the course with which a stage ended last; None if it didn't."""
    path = folder / "done.json"
    if not path.exists():
        return None
    done = files.read_json(path)
    return Course(done.get("method", ""), tuple(done.get("ends", ())))


def _unnamed(value: Any) -> Any:
    """Returns a flag's value, the user's own photographs without their name.

    The folder or the table may be renamed: the digits stand for all that
    matters.
    """
    if isinstance(value, str) and value.startswith(OWN_PREFIXES):
        return value.rpartition("@")[2]
    return value
