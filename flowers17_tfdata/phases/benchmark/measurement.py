"""Measures the rates of all rows in turns, and compares them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from flowers17_tfdata import terminal

# The least duration of a measurement, seconds: long enough that a short pause
# by the scheduler doesn't matter.
MIN_SECS = 1.0

RATE = "images/s"


@dataclasses.dataclass
class Row:
    """One measured part of the program.

    Attributes:
      stage: the row's name, `group/name`.
      run: takes a measurement.
      relative_to: the row to compare this one with, or None.
      ceiling: the row whose rate this one can't exceed, or None.
      moved_by: the flags that make it faster, for the user.
      unit: the unit of the measurements.
      more: other values for the row of `benchmark.json`, which `run` may set.
      runs: the measurements so far.
    """

    stage: str
    run: Callable[[], float]
    relative_to: str | None = None
    ceiling: str | None = None
    moved_by: str = ""
    unit: str = RATE
    more: dict[str, float] = dataclasses.field(default_factory=dict)
    runs: list[float] = dataclasses.field(default_factory=list)


def rate(call: Callable[[], int]) -> float:
    """Calls a function until `MIN_SECS` have passed.

    Args:
      call: does some work and returns the number of images it processed.

    Returns:
      Images/s.
    """
    start, images = time.perf_counter(), 0
    while True:
        images += call()
        elapsed = time.perf_counter() - start
        if elapsed >= MIN_SECS:
            return images / elapsed


def measure_in_turns(rows: Sequence[Row], num_runs: int) -> None:
    """Fills `runs` of every row.

    The first round of all rows is a warm-up (tracing, caches, clock speeds)
    and not recorded; `num_runs` rounds follow. Taking turns makes a machine
    whose speed drifts drift for all rows alike.
    """
    rounds = range(num_runs + 1)
    total = len(rows) * len(rounds)
    with terminal.EpochProgress("benchmark", total) as progress:
        for round_number, row in itertools.product(rounds, rows):
            progress.advance(1, row.stage)
            measured = row.run()
            if round_number:
                row.runs.append(measured)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows of `benchmark.json`.

    A ratio of two rows is the median of their rounds' ratios.
    """
    runs = {row.stage: row.runs for row in rows}

    def ratio(row: Row, other: str | None) -> float | None:
        if other is None:
            return None
        rounds = zip(row.runs, runs[other], strict=True)
        return statistics.median(a / b for a, b in rounds)

    return [
        {
            "stage": row.stage,
            "images_per_sec": (
                statistics.median(row.runs) if row.unit == RATE else None
            ),
            "value": statistics.median(row.runs),
            "unit": row.unit,
            "runs": row.runs,
            "relative_to": row.relative_to,
            "ratio": ratio(row, row.relative_to),
            "ceiling": row.ceiling,
            "share_of_ceiling": ratio(row, row.ceiling),
            "moved_by": row.moved_by,
            **row.more,
        }
        for row in rows
    ]
