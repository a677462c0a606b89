"""Metrics on disk: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import tensorflow as tf

from flowers17_tfdata.errors import UserError, one_line


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either the old or the new one, whenever killed."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads JSON.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {one_line(error)}") from error


class MetricsWriter:
    """Writes an epoch's line to `metrics.jsonl` and to TensorBoard.

    Args:
      workdir: of the run.
      phase: `transfer`, `finetune` or `refit`.
      num_epochs_done: epochs that the restored checkpoint holds. Later lines
        of this phase are from a run that died before its checkpoint; they are
        dropped, because those epochs run again.
    """

    def __init__(self, workdir: pathlib.Path, phase: str, num_epochs_done: int):
        self._path = workdir / "metrics.jsonl"
        self._phase = phase
        self._drop_lines_after(num_epochs_done)
        self._summaries = tf.summary.create_file_writer(
            str(workdir / "tensorboard" / phase)
        )

    def _drop_lines_after(self, num_epochs_done: int) -> None:
        kept = [
            line
            for line in read_metrics(self._path)
            if line["phase"] != self._phase or line["epoch"] <= num_epochs_done
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self._path, text)

    def write(self, line: dict[str, Any]) -> None:
        """Appends one epoch; `line["step"]` is TensorBoard's step."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        with self._summaries.as_default(step=line["step"]):
            for name, value in line.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
        self._summaries.flush()

    def close(self) -> None:
        self._summaries.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the whole lines of `metrics.jsonl`; none if there is no file."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            # Cut short by a kill: the epoch has no checkpoint either.
            break
    return lines
