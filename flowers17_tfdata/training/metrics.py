"""The metrics of each epoch: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tensorflow as tf

from flowers17_tfdata import files


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
            for line in files.read_json_lines(self._path)
            if line["phase"] != self._phase or line["epoch"] <= num_epochs_done
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_text(self._path, text)

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
