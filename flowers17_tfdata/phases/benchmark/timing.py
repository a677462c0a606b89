"""Rates, measured in turns."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

# One measurement lasts at least this long, seconds: beyond a scheduler's
# hiccup.
MIN_SECS = 1.0


@dataclasses.dataclass
class Row:
    """One measured stage.

    Attributes:
      stage: its name, `group/name`.
      run: takes one measurement, images/s.
      relative_to: stage that it is compared with, or None.
      ceiling: stage whose rate it can't exceed, or None.
      moved_by: what makes it faster, for the user.
      runs: the measurements so far, images/s.
    """

    stage: str
    run: Callable[[], float]
    relative_to: str | None = None
    ceiling: str | None = None
    moved_by: str = ""
    runs: list[float] = dataclasses.field(default_factory=list)

    @property
    def images_per_sec(self) -> float:
        return statistics.median(self.runs)


def rate(
    call: Callable[[], int],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Calls until `MIN_SECS` have passed.

    Args:
      call: does some work; returns the number of images it was.
      clock: seconds.

    Returns:
      Images/s.
    """
    start, images = clock(), 0
    while True:
        images += call()
        elapsed = clock() - start
        if elapsed >= MIN_SECS:
            return images / elapsed


def measure_in_turns(
    rows: Sequence[Row], num_runs: int, progress: Callable[[Row], None]
) -> None:
    """Fills `runs` of every row.

    All rows once unrecorded (tracing, caches, clocks that have yet to rise),
    then `num_runs` rounds of all rows: a machine whose speed drifts does so
    for everyone.
    """
    for round_number in range(num_runs + 1):
        for row in rows:
            progress(row)
            images_per_sec = row.run()
            if round_number:
                row.runs.append(images_per_sec)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows of `benchmark.json`."""
    by_stage = {row.stage: row for row in rows}
    result = []
    for row in rows:
        other = by_stage.get(row.relative_to or "")
        ceiling = by_stage.get(row.ceiling or "")
        result.append(
            {
                "stage": row.stage,
                "images_per_sec": row.images_per_sec,
                "runs": row.runs,
                "relative_to": other.stage if other else None,
                "ratio": _ratio(row, other),
                "ceiling": ceiling.stage if ceiling else None,
                "share_of_ceiling": _ratio(row, ceiling),
                "moved_by": row.moved_by,
            }
        )
    return result


def _ratio(row: Row, other: Row | None) -> float | None:
    """Returns the median of the ratios, round by round."""
    if other is None:
        return None
    return statistics.median(
        a / b for a, b in zip(row.runs, other.runs, strict=True)
    )
