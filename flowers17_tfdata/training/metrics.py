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
      workdir: the run's folder.
      phase: `transfer`, `finetune` or `refit`.
      num_epochs_done: the number of epochs that the restored checkpoint holds.
        Later lines of this phase come from a run that ended before it saved a
        checkpoint. They are dropped, because those epochs run again.
    """

    def __init__(self, workdir: pathlib.Path, phase: str, num_epochs_done: int):
        self._path = workdir / "metrics.jsonl"
        kept = [
            json.dumps(line) + "\n"
            for line in files.read_json_lines(self._path)
            if line["phase"] != phase or line["epoch"] <= num_epochs_done
        ]
        files.write_text(self._path, "".join(kept))
        self._summaries = tf.summary.create_file_writer(
            str(workdir / "tensorboard" / phase)
        )

    def write(self, line: dict[str, Any]) -> None:
        """Appends one epoch; `line["step"]` is TensorBoard's step."""
        files.append_json_line(self._path, line)
        with self._summaries.as_default(step=line["step"]):
            for name, value in line.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
        self._summaries.flush()

    def close(self) -> None:
        self._summaries.close()
