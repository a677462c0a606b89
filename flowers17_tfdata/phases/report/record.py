"""Reads the files that training left in a workdir."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.config.optimization import STAGES

_TITLES = {"transfer": "Transfer", "finetune": "Fine-tune", "refit": "Refit"}


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One training stage.

    Attributes:
      name: transfer, finetune or refit.
      epochs: the stage's lines of `metrics.jsonl`, in order.
      best_epoch: the epoch whose weights were kept; None: unknown.
    """

    name: str
    epochs: list[dict[str, Any]]
    best_epoch: int | None

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def best(self) -> dict[str, Any]:
        """The line of the best epoch; empty if the epoch is unknown."""
        lines = [x for x in self.epochs if x["epoch"] == self.best_epoch]
        return lines[-1] if lines else {}

    @property
    def seconds(self) -> float:
        return sum(line["seconds"] for line in self.epochs)

    @property
    def images_per_sec(self) -> float:
        """The median over the epochs."""
        return statistics.median(line["images_per_sec"] for line in self.epochs)

    @property
    def data_wait(self) -> float:
        """The fraction of the time spent waiting for data, in [0, 1]."""
        return statistics.mean(x["data_wait_fraction"] for x in self.epochs)


def read_if_there(path: pathlib.Path) -> Any:
    """Returns the contents of a JSON file, or None if there is no file.

    Raises:
      UserError: the file is damaged.
    """
    return files.read_json(path) if path.exists() else None


def read_stages(workdir: pathlib.Path) -> list[StageRecord]:
    """Reads `metrics.jsonl` and the checkpoints' records of the best epochs.

    Returns:
      The stages that have a line, in the order in which they run.

    Raises:
      UserError: a file is damaged.
    """
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    stages = []
    for name in STAGES:
        epochs = [line for line in lines if line["phase"] == name]
        if epochs:
            done = read_if_there(workdir / "checkpoints" / name / "done.json")
            best = done["best_epoch"] if done else None
            stages.append(StageRecord(name, epochs, best))
    return stages
