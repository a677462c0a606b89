"""What a workdir tells of its run, and what it doesn't."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from flowers17_tfdata import files, timings
from flowers17_tfdata.config import config as config_lib


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One training stage.

    Attributes:
      name: transfer or finetune.
      epochs: lines of `metrics.jsonl`, in order.
      best_epoch: the epoch whose weights were kept; None: not known.
    """

    name: str
    epochs: list[dict[str, Any]]
    best_epoch: int | None

    @property
    def seconds(self) -> float:
        return sum(line["seconds"] for line in self.epochs)

    def best_line(self) -> dict[str, Any] | None:
        """Returns the line of the best epoch, if there is one."""
        lines = [x for x in self.epochs if x["epoch"] == self.best_epoch]
        return lines[-1] if lines else None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files that training and the audit left in a workdir.

    Attributes:
      config: `config.json`; None: nothing was trained here.
      stages: those of `metrics.jsonl`, in their order; may be empty.
      audit: `audit.json`, if there is one.
      parts: `{part: seconds}` of `timings.jsonl`.
    """

    config: dict[str, Any] | None
    stages: list[StageRecord]
    audit: dict[str, Any] | None
    parts: dict[str, float]


def read_record(workdir: pathlib.Path) -> RunRecord:
    """Reads what there is.

    Raises:
      UserError: a file is damaged.
    """
    stages = _read_stages(workdir)
    return RunRecord(
        config=_read_if_there(workdir / "config.json"),
        stages=stages,
        audit=_read_if_there(workdir / "audit.json"),
        parts=_complete_parts(timings.read(workdir), stages),
    )


def _read_if_there(path: pathlib.Path) -> dict[str, Any] | None:
    return files.read_json(path) if path.exists() else None


def _read_stages(workdir: pathlib.Path) -> list[StageRecord]:
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    stages = []
    for name in config_lib.STAGES:
        epochs = [line for line in lines if line["phase"] == name]
        if epochs:
            done = _read_if_there(workdir / "checkpoints" / name / "done.json")
            best = done["best_epoch"] if done else None
            stages.append(StageRecord(name, epochs, best))
    return stages


def _complete_parts(
    parts: dict[str, float], stages: list[StageRecord]
) -> dict[str, float]:
    """Adds the epochs of a run from before there were timings."""
    parts = dict(parts)
    for stage in stages:
        parts.setdefault(f"{stage.name}: epochs", stage.seconds)
    return parts
