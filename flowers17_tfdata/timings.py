"""Where a run's wall time went: `timings.jsonl`."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator

from flowers17_tfdata import files

FILE_NAME = "timings.jsonl"


@contextlib.contextmanager
def measure(workdir: pathlib.Path, part: str) -> Iterator[None]:
    """Appends `{"part", "seconds", "ended"}` when the block has ended well.

    Args:
      workdir: the folder of the run.
      part: e.g. `finetune: epochs`; parts don't overlap.
    """
    start = time.perf_counter()
    yield
    seconds = round(time.perf_counter() - start, 3)
    line = {"part": part, "seconds": seconds, "ended": round(time.time(), 3)}
    files.append_json_line(workdir / FILE_NAME, line)


def read(workdir: pathlib.Path) -> dict[str, float]:
    """Returns `{part: seconds}`, summed over a run's processes."""
    sums: dict[str, float] = {}
    for line in files.read_json_lines(workdir / FILE_NAME):
        sums[line["part"]] = sums.get(line["part"], 0.0) + line["seconds"]
    return sums
